"""What the commands print for people: steps, models and devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from memsim.timeline import Timeline
from memsim.words import gib


def steps(timeline: Timeline) -> Table:
    """Peaks and what is held at the end of each step, in GiB. Where memory runs out, the steps as they would be with enough of it."""
    finished = len(timeline.steps)
    grid = _table("GiB, as if there were enough memory" if timeline.out_of_memory and timeline.unlimited else "GiB")
    grid.add_column("step", justify="right")
    for title in ("peak requested", "peak allocated", "peak reserved", "held after", "reserved after", "segments", "retries"):
        grid.add_column(title, justify="right")
    for at, step in enumerate(timeline.steps_needed):
        values = (step.peak_requested, step.peak_allocated, step.peak_reserved, step.end_allocated, step.end_reserved)
        cells = [str(step.step), *(gib(value, unit=False) for value in values), str(step.peak_segments), str(step.retries)]
        grid.add_row(*[Text(cell) for cell in cells], style="" if at < finished else "dim")
    return grid


def models(listed: Mapping[str, Any]) -> Table:
    """The catalogue's models with the fields that decide their size."""
    grid = _table(None)
    keys = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    grid.add_column("model", no_wrap=True)
    for title in ("family", "layers", "hidden", "heads", "key-value heads", "vocabulary"):
        grid.add_column(title, justify="left" if title == "family" else "right")
    for name, model in listed.items():
        fields = plain(model)
        grid.add_row(Text(name), *[Text(_cell(fields.get(key))) for key in keys])
    return grid


def devices(listed: Mapping[str, Any]) -> Table:
    """The catalogue's devices."""
    grid = _table(None)
    grid.add_column("device", no_wrap=True)
    grid.add_column("name", no_wrap=True)
    for title in ("memory", "sm"):
        grid.add_column(title, justify="right", no_wrap=True)
    for key, device in listed.items():
        grid.add_row(Text(key), Text(device.name), Text(gib(device.memory_bytes)), Text(_cell(plain(device).get("sm"))))
    return grid


def plain(value: Any) -> Any:
    """Catalogue entries as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", title_style="dim", header_style="bold", pad_edge=False)


def _cell(value: object) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
