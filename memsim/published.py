"""Figures that others measured on real GPUs and published, against simulations of the same jobs.

A row says a configuration and a measurement; a row whose configuration or code memsim cannot determine is listed with the reason, never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memsim import tables
from memsim.errors import InputError, Unsupported
from memsim.timeline import Timeline

# Hugging Face id → catalogue name, and fields that the measured code set. FlashAttention was given packed sequences: no mask, no window to reach.
MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = {"mistralai/Mistral-7B-v0.1": ("mistral-7b", {"vocab_size": 32000, "sliding_window": None})}
# fms-acceleration's plugins, and who casts what QLoRA does not quantize: TRL's trainer; with the plugin nobody (framework_plugin_bnb.py).
PLUGINS = {"none": "peft", "baseline-peft-bnb": "trl", "accelerated-peft-bnb": "none"}
METRICS = (  # how a metric begins or what it holds, and what it is of a Timeline
    ("max_memory_allocated", "peak_allocated"),
    ("memory_allocated at end of train", "end_allocated"),
)
UNITS = (("GiB", 2**30), ("GB (1e9)", 10**9), ("MiB", 2**20))
NEEDED = ("id", "framework", "parallelism", "hf_id_or_dims", "method", "metric", "value_gib_or_gb", "unit", "source")


@dataclass(frozen=True)
class Measured:
    """A published row and what became of it."""

    id: str
    source: str  # repository, without the files
    metric: str
    published: float | None  # bytes
    simulated: int | None  # bytes; None where it was not simulated
    reason: str  # why not

    @property
    def error(self) -> float:
        """Percent of the published figure; NaN where there is none."""
        if self.published is None or self.simulated is None:
            return float("nan")
        return 100 * (self.simulated - self.published) / self.published


def load(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON Lines file. Raises InputError, naming file, line and key."""
    rows: list[Mapping[str, Any]] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}: line {number}: is not JSON: {error}") from None
            missing = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
            if missing:
                raise InputError(f"{path}: line {number}: {missing[0]}: missing; a row has {', '.join(NEEDED)}")
            rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def run_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's job as a Run's keys. Raises Unsupported with the reason why it has none."""
    framework, parallelism = str(row["framework"]), str(row["parallelism"])
    if not re.match(r"1 GPU\b", parallelism):
        raise Unsupported("more than one GPU, or it does not say" if parallelism not in ("None", "") else "does not say how many GPUs")
    plugin = re.search(r"fms-acceleration \[([^\]]*)\]", framework)
    if plugin is None:
        raise Unsupported("not trained by Hugging Face's own model code of a stack that memsim has")
    if plugin[1] not in PLUGINS:
        raise Unsupported("fused kernels (fms-acceleration's foak, Liger)" if re.search("foak|liger", plugin[1]) else "GPTQ's kernels, or another plugin")
    if "transformers 4.48.1" not in framework:
        raise Unsupported("a version of transformers that is no stack of memsim's")
    if row["hf_id_or_dims"] not in MODELS:
        raise Unsupported(f"model: {row['hf_id_or_dims']} is not in the catalogue")
    from memsim.catalog import models

    name, fields = MODELS[row["hf_id_or_dims"]]
    method: dict[str, Any] = {"kind": "full"}
    if row["method"] != "full":
        named = [target for target in str(row["targets"]).split(",") if target != "c_attn"]  # which this model has none of
        method = {"kind": "qlora" if "QLoRA" in str(row["method"]) else "lora", "rank": row["rank"], "targets": named}
        if method["kind"] == "qlora":
            method["casts"] = PLUGINS[plugin[1]]
    return {
        "model": {**models()[name], **fields},
        "method": method,
        "batch": {"size": row["micro_batch"], "sequence": row["seq_len"], "accumulation": row["grad_accum"] or 1},
        "precision": "bf16",
        "checkpointing": "full" if str(row["checkpointing"]).startswith("HF gradient checkpointing") else "none",
        "stack": "hf-4.48",
    }


def compare(rows: list[Mapping[str, Any]], simulate: Callable[[Mapping[str, Any]], Timeline]) -> list[Measured]:
    """Every row with its simulation, or with the reason why it has none."""
    known: dict[str, Timeline] = {}
    found = []
    for row in rows:
        source = " ".join(str(row["source"]).split()[:1])
        published, simulated, reason = None, None, ""
        metric = next((key for words, key in METRICS if words in str(row["metric"])), "")
        factor = next((size for unit, size in UNITS if str(row["unit"]).startswith(unit)), None)
        try:
            run = run_of(row)
            if not metric or factor is None:
                raise Unsupported(
                    "measured by nvidia-smi: the CUDA context and other processes count" if "nvidia-smi" in str(row["metric"]) else "another metric"
                )
            published = float(row["value_gib_or_gb"]) * factor
            key = json.dumps(run, sort_keys=True)
            if key not in known:
                known[key] = simulate(run)
            timeline = known[key]
            simulated = timeline.peak_allocated if metric == "peak_allocated" else timeline.steps_needed[-1].end_allocated
        except Unsupported as error:
            reason = str(error)
        found.append(Measured(str(row["id"]), source, metric or str(row["metric"]), published, simulated, reason))
    return found


def table(found: list[Measured]) -> Group:
    """The simulated rows, the sources, and why the others are left out."""
    grid = tables.table("row", "metric", "published GiB", "simulated GiB", "error %", left=2)
    for row in found:
        if row.simulated is not None and row.published is not None:
            cells = [row.id, row.metric.replace("_", " "), f"{row.published / 2**30:.4f}", f"{row.simulated / 2**30:.4f}", f"{row.error:+.4f}"]
            grid.add_row(*[Text(cell) for cell in cells])
    return Group(grid, "", _sources(found), "", _reasons(found))


def _sources(found: list[Measured]) -> Table:
    grid = tables.table("source", "rows", "simulated", "median error %", "worst %")
    for source in dict.fromkeys(row.source for row in found):
        rows = [row for row in found if row.source == source]
        errors = [abs(row.error) for row in rows if row.simulated is not None]
        grid.add_row(Text(source), str(len(rows)), str(len(errors)), f"{median(errors):.4f}" if errors else "–", f"{max(errors):.4f}" if errors else "–")
    return grid


def _reasons(found: list[Measured]) -> Table:
    grid = tables.table("not simulated, because", "rows")
    for reason, count in Counter(row.reason for row in found if row.reason).most_common():
        grid.add_row(Text(reason), str(count))
    return grid


def to_json(found: list[Measured]) -> dict[str, object]:
    """Everything as plain data; sizes in bytes."""
    errors = [abs(row.error) for row in found if row.simulated is not None]
    rows = [asdict(row) | {"error_percent": row.error if row.simulated is not None else None} for row in found]
    summary = {"rows": len(found), "simulated": len(errors), "median_error_percent": median(errors) if errors else None}
    return {"rows": rows, "summary": summary | {"worst_error_percent": max(errors) if errors else None}}
