"""The first event at which a simulation and a recording part, with what surrounds it on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group
from rich.text import Text

from memsim.cli import tables
from memsim.tape import SET_ORDER
from memsim.timeline.curves import Curves
from memsim.traces.recorder import Recording
from memsim.units import size
from memsim.validation import sequences as ev
from memsim.validation.sequences import EventSequence


@dataclass(frozen=True)
class Comparison:
    """Two event sequences and the first event at which they differ."""

    simulated: EventSequence
    recorded: EventSequence
    first: int | None  # None: equal to the last event

    @property
    def equal(self) -> bool:
        """Whether every event is equal."""
        return self.first is None


def compare(
    timeline: Curves, recording: Recording, addresses: bool = False, last_step: int | None = None
) -> Comparison:
    """Compares all events up to the first out of memory or the end of step `last_step`. Raises InputError where the
    recording contradicts itself.
    """
    recorded = ev.until_out_of_memory(ev.of_recording(recording))
    simulated = ev.until_out_of_memory(ev.of_simulation(timeline.tape, timeline.answer))
    if last_step is not None:
        recorded, simulated = ev.until_step(recorded, last_step), ev.until_step(simulated, last_step)
    recorded = ev.named_as(ev.ordered_as(recorded, simulated), simulated)
    return Comparison(simulated, recorded, ev.first_difference(simulated, recorded, addresses))


def is_order_open(timeline: Curves) -> bool:
    """Whether the simulation went through a Python set, whose order differs from process to process."""
    return any(name.startswith(SET_ORDER) for name in timeline.tape.operators)


def summary(comparison: Comparison) -> str:
    """The outcome in a sentence."""
    ours, theirs = comparison.simulated, comparison.recorded
    if comparison.first is None:
        return f"Equal: all {len(theirs):,} events."
    first = comparison.first
    if first >= len(ours) or first >= len(theirs):
        shorter, longer = ("simulation", "recording") if len(ours) < len(theirs) else ("recording", "simulation")
        return (
            f"The first {first:,} events are equal; there the {shorter} ends, and the {longer} goes on for "
            f"{abs(len(ours) - len(theirs)):,} more."
        )
    return (
        f"Event {first:,} differs, the first of {len(theirs):,} recorded and {len(ours):,} simulated; in "
        f"{theirs.place(first) or ours.place(first)}."
    )


def table(comparison: Comparison, context: int = 8, addresses: bool = False) -> Group:
    """Both sides around the first difference: `context` events before it, and as many after."""
    if comparison.first is None:
        return Group(Text(summary(comparison)))
    grid = tables.table()
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
