"""Compares figures that others measured on real GPUs and published with simulations of the same jobs.

A row states a configuration and a measurement. A row whose configuration or code memsim cannot determine is listed with
the reason, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from memsim.errors import InputError, Unsupported
from memsim.timeline.curves import Curves
from memsim.validation.sources import SOURCES, Source

METRICS = (  # words that a metric contains, and the value of a Timeline that it stands for
    ("max_memory_allocated", "peak_allocated"),
    ("peak memory allocated", "peak_allocated"),
    ("memory_allocated at end of train", "end_allocated"),
    ("nvidia-smi", "peak_reserved"),
    ("memory as printed", "peak_reserved"),
)
UNITS = (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20))
SMI = (
    "nvidia-smi counts the CUDA context and libraries beside what is reserved, and where those fill the device "
    "PyTorch gives its cache back sooner"
)
PARTS = {"nvidia-smi": SMI}  # words that a metric contains → how it and memsim's measure differ
NEEDED = ("id", "framework", "parallelism", "hf_id_or_dims", "method", "metric", "value_gib_or_gb", "unit", "source")


@dataclass(frozen=True)
class Measured:
    """A published row and its simulation, or the reason why it has none."""

    id: str
    source: str  # repository, without the files
    metric: str
    published: float | None  # bytes
    simulated: int | None  # bytes; None where it was not simulated
    reason: str  # why it was not simulated
    differs: str = ""  # how the measured code, or the measurement, and memsim's differ

    @property
    def error(self) -> float:
        """Error in percent of the published figure; NaN where there is none."""
        if self.published is None or self.simulated is None:
            return float("nan")
        return 100 * (self.simulated - self.published) / self.published


def load(path: Path) -> list[Mapping[str, Any]]:
    """Returns the rows of a JSON Lines file. Raises InputError, naming file, line and key."""
    rows: list[Mapping[str, Any]] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
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


def source_of(row: Mapping[str, Any]) -> Source:
    """Returns the source of a row. Raises Unsupported with the reason why its job is not a Run."""
    parallelism = str(row["parallelism"])
    if not re.match(r"1 GPU\b", parallelism):
        raise Unsupported(
            "more than one GPU, or it does not say" if parallelism not in ("None", "") else "does not say how many GPUs"
        )
    source = next((source for source in SOURCES if str(row["source"]).startswith(source.begins)), None)
    if source is None:
        raise Unsupported("not trained by Hugging Face's own model code of a stack that memsim has")
    return source


def with_simulations(rows: list[Mapping[str, Any]], simulate: Callable[[Mapping[str, Any]], Curves]) -> list[Measured]:
    """Returns every row with its simulation, or with the reason why it has none."""
    known: dict[str, Curves] = {}
    found = []
    for row in rows:
        source = " ".join(str(row["source"]).split()[:1])
        published, simulated, reason = None, None, ""
        metric = next((key for words, key in METRICS if words in str(row["metric"])), "")
        factor = next((size for unit, size in UNITS if str(row["unit"]).startswith(unit)), None)
        differs = ""
        try:
            origin = source_of(row)
            run = origin.run(row)
            if not metric or factor is None or row["value_gib_or_gb"] is None:
                raise Unsupported("another metric")
            published = float(row["value_gib_or_gb"]) * factor
            key = json.dumps(run, sort_keys=True)
            if key not in known:
                known[key] = simulate(run)
            timeline = known[key]
            simulated = value_of(timeline, metric)
            differs = origin.differs or next((text for words, text in PARTS.items() if words in str(row["metric"])), "")
        except InputError as error:
            reason = str(error)
        found.append(
            Measured(str(row["id"]), source, metric or str(row["metric"]), published, simulated, reason, differs)
        )
    return found


def value_of(timeline: Curves, metric: str) -> int:
    """Returns the value of the Timeline for a metric of METRICS, in bytes."""
    if metric == "end_allocated":
        return timeline.steps_needed[-1].end_allocated
    return timeline.peak_allocated if metric == "peak_allocated" else timeline.peak_reserved


def to_json(found: list[Measured]) -> dict[str, object]:
    """Returns everything as plain data, with sizes in bytes. The summary is of the rows whose code and measure are
    those that memsim models.
    """
    errors = [abs(row.error) for row in found if row.simulated is not None and not row.differs]
    rows = [asdict(row) | {"error_percent": row.error if row.simulated is not None else None} for row in found]
    summary = {"rows": len(found), "simulated": len(errors), "median_error_percent": median(errors) if errors else None}
    return {"rows": rows, "summary": summary | {"worst_error_percent": max(errors) if errors else None}}
