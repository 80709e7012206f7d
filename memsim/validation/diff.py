"""Finds the first event at which a simulation and a recording diverge, with the events around it on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.tape import SET_ORDER
from memsim.timeline.curves import Curves
from memsim.traces.recorder import Recording
from memsim.validation import sequences as ev
from memsim.validation.sequences import EventSequence


@dataclass(frozen=True)
class Alignment:
    """Two event sequences and the first event at which they differ."""

    simulated: EventSequence
    recorded: EventSequence
    first: int | None  # None: equal to the last event

    @property
    def equal(self) -> bool:
        """True if every event is equal."""
        return self.first is None


def align(timeline: Curves, recording: Recording, addresses: bool = False, last_step: int | None = None) -> Alignment:
    """Compares all events up to the first out of memory, or the end of step `last_step`. Raises InputError where the
    recording contradicts itself.
    """
    recorded = ev.until_out_of_memory(ev.of_recording(recording))
    simulated = ev.until_out_of_memory(ev.of_simulation(timeline.tape, timeline.answer))
    oom = timeline.answer.out_of_memory
    if oom is not None and oom.rejected:  # no event tells where; what follows depends on who catches the exception
        recorded = ev.head(recorded, len(simulated))
    if last_step is not None:
        recorded, simulated = ev.until_step(recorded, last_step), ev.until_step(simulated, last_step)
    recorded = ev.named_as(ev.ordered_as(recorded, simulated), simulated)
    return Alignment(simulated, recorded, ev.first_difference(simulated, recorded, addresses))


def is_order_open(timeline: Curves) -> bool:
    """True if the simulation went through a Python set, whose order differs from process to process."""
    return any(name.startswith(SET_ORDER) for name in timeline.tape.operators)


def summary(comparison: Alignment) -> str:
    """Returns the outcome in a sentence."""
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
