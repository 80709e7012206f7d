"""What the commands print for people: steps, models and devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from memsim.allocator.rules import rules_of
from memsim.catalog import Device
from memsim.cli.console import harmless
from memsim.run.optimizer_names import held_by
from memsim.stacks.known import GOLDEN
from memsim.stacks.software import MEANING, Software
from memsim.timeline.curves import Curves
from memsim.units import gib

# the allocator knows versions itself
TIES = {"address": "by address", "creation": "by the age of the block", "segment": "by the age of their segment"}


class Grid(Table):
    """A table whose cells show what a terminal would obey."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*[harmless(cell) if isinstance(cell, Text) else cell for cell in cells], **options)


def grid(*columns: str, left: int = 1, title: str | None = None) -> Table:
    """An empty table whose first `left` columns hold words and the others numbers. A narrow terminal folds cells and
    never cuts them.
    """
    made = Grid(
        title=title,
        title_justify="left",
        title_style="dim",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for at, column in enumerate(columns):
        made.add_column(column, justify="left" if at < left else "right", overflow="fold")
    return made


def steps(timeline: Curves) -> Table:
    """Peaks and what is held at the end of each step, in GiB. Where memory runs out, the steps as they would be with
    enough of it.
    """
    finished = len(timeline.steps)
    title = "GiB, as if there were enough memory" if timeline.out_of_memory and timeline.unlimited else "GiB"
    columns = (
        "step",
        "peak requested",
        "peak allocated",
        "peak reserved",
        "end allocated",
        "end reserved",
        "segments",
        "retries",
    )
    rows = grid(*columns, left=0, title=title)
    for at, step in enumerate(timeline.steps_needed):
        values = (step.peak_requested, step.peak_allocated, step.peak_reserved, step.end_allocated, step.end_reserved)
        cells = [
            str(step.step),
            *(gib(value, unit=False) for value in values),
            str(step.peak_segments),
            str(step.retries),
        ]
        rows.add_row(*[Text(cell) for cell in cells], style="" if at < finished else "dim")
    return rows


def models(listed: Mapping[str, Mapping[str, object]]) -> Table:
    """The catalogue's models with the fields that decide their size."""
    keys = (  # Hugging Face's names, and those of families that have their own
        ("model_type",),
        ("num_hidden_layers", "n_layer", "num_layers"),
        ("hidden_size", "n_embd", "d_model"),
        ("num_attention_heads", "n_head", "num_heads"),
        ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads"),
        ("vocab_size",),
    )
    rows = grid("model", "family", "layers", "hidden", "heads", "key-value heads", "vocabulary", left=2)
    for name, model in listed.items():
        rows.add_row(
            Text(name),
            *[Text(_cell(next((model[key] for key in names if model.get(key) is not None), None))) for names in keys],
        )
    return rows


def devices(listed: Mapping[str, Device]) -> Table:
    """The catalogue's devices: memory by the data sheet and what the allocator can have of it, dense 16-bit operations,
    bandwidths.
    """
    columns = ("memory", "usable", "sm", "16-bit TFLOP/s", "memory GB/s", "link GB/s", "host GB/s")
    rows = grid("device", "in full", *columns, left=2)
    for name, device in listed.items():
        flops = device.flops.get("bf16", device.flops.get("fp16"))
        cells = [
            name,
            device.title,
            gib(device.memory),
            f"{'~' if device.total is None else ''}{gib(device.usable)}",
            _cell(device.sm),
            _scaled(flops, 1e12),
            _scaled(device.memory_bandwidth, 1e9),
        ]
        cells += [_scaled(link.bandwidth if link else None, 1e9) for link in (device.link, device.pcie)]
        rows.add_row(*[Text(cell) for cell in cells])
    return rows


def devices_json(listed: Mapping[str, Device]) -> dict[str, object]:
    """The same as JSON, with the sources of each figure; bytes, and operations and bytes a second."""
    return {name: {**_fields(device), "usable": device.usable} for name, device in listed.items()}


def _fields(value: Device) -> dict[str, object]:
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def stacks(listed: Mapping[str, Software]) -> list[Table]:
    """The stacks with their versions, and for each what it does otherwise than the golden one."""
    rows = grid("stack", "torch", "transformers", "peft", "sm", "families", left=6)
    for name, stack in listed.items():
        families = ", ".join(stack.held.get("model_type", ("every one",)))
        rows.add_row(
            *[Text(cell) for cell in (name, stack.torch, stack.transformers, stack.peft, stack.devices, families)]
        )
    tables = [rows]
    for name, stack in listed.items():
        found = differences(stack)
        if found:
            tables.append(grid("difference", name, GOLDEN.name, left=3))
            for cells in found.values():
                tables[-1].add_row(*[Text(cell) for cell in cells])
    return tables


def stacks_json(listed: Mapping[str, Software]) -> dict[str, object]:
    """The same as JSON: versions, what is held against recordings, and differences from the golden stack by name."""
    return {
        name: {
            "versions": stack.versions,
            "held": {key: list(values) for key, values in held_by(stack).items()},
            "least_sm": stack.least_sm,
            "most_sm": stack.most_sm,
            "differences": {
                key: {"about": about, "here": own, "golden": golden}
                for key, (about, own, golden) in differences(stack).items()
            },
        }
        for name, stack in listed.items()
    }


def plain(value: object) -> object:
    """Catalogue entries as JSON has them."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _scaled(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:,.0f}"


def differences(stack: Software) -> dict[str, tuple[str, str, str]]:
    """What a stack does otherwise than the golden one: difference → what it is about, what this one does, what the
    golden one does.
    """
    own, golden = (TIES[rules_of(software.torch).ties] for software in (stack, GOLDEN))
    allocator = {} if own == golden else {"allocator_ties": ("allocator: order of equal free blocks", own, golden)}
    return {name: meaning for name, meaning in MEANING.items() if getattr(stack, name)} | allocator
