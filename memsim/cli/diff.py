"""What `memsim diff` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from memsim.cli import console, tables
from memsim.cli.running import DONE, NO, loaded, simulated
from memsim.traces import recorder
from memsim.units import size
from memsim.validation.diff import Alignment, align, is_order_open, summary
from memsim.validation.recorded import settings_beside
from memsim.validation.sequences import EventSequence


def run(source: str, trace: Path, settings: Sequence[str] | None, context: int, addresses: bool) -> int:
    """The command; returns its exit code: 1 where the two part. Raises InputError."""
    recording = recorder.load(trace)  # before the simulation: a bad file should not have to wait for it
    job = loaded(source, [*settings_beside(trace), *(settings or [])])
    timeline = simulated(job)
    found = align(timeline, recording, addresses)
    if not found.equal and is_order_open(timeline):
        other = align(simulated(job, True), recording, addresses)
        found = other if other.equal else found
    console.out().print(diff_table(found, context, addresses))
    return DONE if found.equal else NO


def diff_table(comparison: Alignment, context: int = 8, addresses: bool = False) -> Group:
    """Both sides around the first difference: `context` events before it, and as many after."""
    if comparison.first is None:
        return Group(Text(summary(comparison)))
    grid = tables.grid()
    grid.add_column("event", justify="right")
    for side in ("simulated", "recorded"):
        grid.add_column(side, overflow="fold")
        grid.add_column("bytes", justify="right", overflow="fold")
        if addresses:
            grid.add_column("address", justify="right", overflow="fold")
    grid.add_column("where", overflow="fold")
    stop = max(len(comparison.simulated), len(comparison.recorded))
    for event in range(max(comparison.first - context, 0), min(comparison.first + context + 1, stop)):
        row = [f"{event:,}"]
        for side_events in (comparison.simulated, comparison.recorded):
            row += _side(side_events, event, addresses)
        where = comparison.simulated if event < len(comparison.simulated) else comparison.recorded
        row.append(where.place(event))
        here = event == comparison.first
        grid.add_row(
            *[Text(cell) for cell in ([f"> {row[0]}", *row[1:]] if here else row)], style="bold red" if here else ""
        )
    return Group(Text(summary(comparison)), grid)


def _side(events: EventSequence, event: int, addresses: bool) -> list[str]:
    if event >= len(events):
        return ["(end)" if event == len(events) else "", ""] + ([""] if addresses else [])
    count = int(events.bytes[event])
    cells = [events.describe(event), f"{count:,} ({size(count)})" if count >= 2**20 else f"{count:,}"]
    return cells + ([f"{int(events.address[event]):#x}"] if addresses else [])
