"""Allocator events in the recorder's words, of a simulation or of a recording, and the first place where two of them
diverge.

An ALLOC of the Tape is an `alloc`, after the driver's events that it caused, or an `oom`. A FREE is a `free_requested`
and a `free_completed`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer, DriverAction
from memsim.tape import AUTOCAST_CACHE, SET_ORDER, Action, Tape
from memsim.traces import recorder
from memsim.traces.recorder import ACTIONS, ALLOC, FREE_COMPLETED, FREE_REQUESTED, OOM, SNAPSHOT, Recording

DRIVER = np.zeros(len(DriverAction), np.uint8)  # DriverAction → index into ACTIONS
DRIVER[DriverAction.SEGMENT_ALLOC] = recorder.SEGMENT_ALLOC
DRIVER[DriverAction.SEGMENT_FREE] = recorder.SEGMENT_FREE
DRIVER[DriverAction.SEGMENT_MAP] = recorder.SEGMENT_MAP
DRIVER[DriverAction.SEGMENT_UNMAP] = recorder.SEGMENT_UNMAP
UNIT = 512  # an `oom` is recorded with its bytes rounded, by default to this, an `alloc` with what was asked for


@dataclass(frozen=True, eq=False)
class EventSequence:
    """Events in order; all arrays have length n."""

    action: NDArray[np.uint8]  # [n] index into ACTIONS
    bytes: NDArray[np.int64]  # [n] requested; rounded to 512 for oom; the driver's for segment_*
    ordinal: NDArray[np.int64]  # [n] number of the alloc, counted from 0, that this event makes or frees; -1 for others
    address: NDArray[np.int64]  # [n] of the block or segment; free device memory in bytes for oom
    phase: NDArray[np.int32]  # [n] index into phases
    phases: tuple[str, ...]
    operator: NDArray[np.int32]  # [n] index into operators
    layer: NDArray[np.int32]  # [n] decoder layer, -1 outside or where it is not known
    operators: tuple[str, ...]  # "" where it is not known

    def __len__(self) -> int:
        return len(self.action)

    def describe(self, event: int) -> str:
        """Returns what an event does: "alloc #12", "segment_alloc"."""
        number = int(self.ordinal[event])
        return ACTIONS[self.action[event]] + (f" #{number}" if number >= 0 else "")

    def place(self, event: int) -> str:
        """Returns where it happens, as far as that is known: "1/forward layer 3 self_attn.q_proj"."""
        words = [self.phases[self.phase[event]] if self.phases else ""]
        if self.layer[event] >= 0:
            words.append(f"layer {self.layer[event]}")
        words.append(self.operators[self.operator[event]] if self.operators else "")
        return " ".join(word for word in words if word)


def of_simulation(tape: Tape, answer: Answer) -> EventSequence:
    """Returns the events of a Tape and the answer to it, as far as it was answered."""
    n = answer.processed
    action, address = tape.action[:n], answer.address[:n]
    oom = answer.out_of_memory
    failed = (action == Action.ALLOC) & (address < 0)
    made = (action == Action.ALLOC) & ~failed
    if oom is not None and oom.rejected:  # which PyTorch does not record
        failed = np.zeros(n, bool)
    freed = (action == Action.FREE) & (answer.block[:n] > 0)  # the storage of a failed ALLOC has nothing to free
    ordinal_of = np.full(tape.storages, -1, np.int64)
    ordinal_of[tape.storage[:n][made]] = np.arange(int(made.sum()))

    drivers = np.bincount(answer.driver_event, minlength=n)[:n] if len(answer.driver_event) else np.zeros(n, np.int64)
    own = made.astype(np.int64) + failed + 2 * freed
    start = np.concatenate([[0], np.cumsum(drivers + own)])
    total = int(start[-1])
    tape_event = np.repeat(np.arange(n), drivers + own)
    result = EventSequence(
        action=np.zeros(total, np.uint8),
        bytes=np.zeros(total, np.int64),
        ordinal=np.full(total, -1, np.int64),
        address=np.zeros(total, np.int64),
        phase=tape.phase[tape_event],
        phases=tape.phases,
        operator=tape.operator[tape_event],
        layer=tape.layer[tape_event],
        operators=tape.operators,
    )
    first_own = start[:n] + drivers  # the driver is called before the request is answered

    at = start[answer.driver_event] + _rank(answer.driver_event)
    result.action[at] = DRIVER[answer.driver_action]
    result.bytes[at] = answer.driver_bytes
    result.address[at] = answer.driver_address

    for which, code, offset in ((made, ALLOC, 0), (freed, FREE_REQUESTED, 0), (freed, FREE_COMPLETED, 1)):
        at = first_own[which] + offset
        result.action[at] = code
        result.bytes[at] = tape.bytes[:n][which]
        result.address[at] = address[which]
        result.ordinal[at] = ordinal_of[tape.storage[:n][which]]

    at = first_own[failed]
    result.action[at] = OOM
    result.bytes[at] = np.maximum(-(-tape.bytes[:n][failed] // UNIT), 1) * UNIT
    if oom is not None and len(at):
        result.bytes[at[0]], result.address[at[0]] = oom.rounded, oom.device_free
    return result


def of_recording(recording: Recording) -> EventSequence:
    """Returns the events of a recording. Raises InputError where it frees memory that it did not allocate."""
    kept = recording.action != SNAPSHOT
    n = int(kept.sum())
    return EventSequence(
        action=recording.action[kept],
        bytes=recording.bytes[kept],
        ordinal=recorder.ordinals(recording)[kept],
        address=recording.address[kept],
        phase=recording.phase[kept],
        phases=recording.phases,
        operator=np.zeros(n, np.int32),
        layer=np.full(n, -1, np.int32),
        operators=("",),
    )


def until_out_of_memory(events: EventSequence) -> EventSequence:
    """Returns the events up to and including the first `oom`. What a job does after it depends on who catches the
    exception.
    """
    failed = np.flatnonzero(events.action == OOM)
    return head(events, int(failed[0]) + 1) if len(failed) else events


def until_step(events: EventSequence, last: int) -> EventSequence:
    """Returns the events up to the end of step `last` (from 0)."""
    later = np.array([_step(name) > last for name in events.phases], bool)
    after = np.flatnonzero(later[events.phase]) if len(events) else np.zeros(0, np.int64)
    return head(events, int(after[0])) if len(after) else events


def head(events: EventSequence, count: int) -> EventSequence:
    """Returns the first `count` events."""
    e = events
    return replace(
        e,
        action=e.action[:count],
        bytes=e.bytes[:count],
        ordinal=e.ordinal[:count],
        address=e.address[:count],
        phase=e.phase[:count],
        operator=e.operator[:count],
        layer=e.layer[:count],
    )


def ordered_as(events: EventSequence, simulated: EventSequence) -> EventSequence:
    """Returns the events, with the frees that empty autocast's cache in the simulation's order, where they are the same
    frees.
    """
    names = np.array([name == AUTOCAST_CACHE for name in simulated.operators], bool)
    n = min(len(events), len(simulated))
    loose = names[simulated.operator[:n]] & (simulated.ordinal[:n] >= 0)
    if not loose.any():
        return events
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loose, [False]]).astype(np.int8)))
    order = np.arange(len(events))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        keys = [np.stack([side.ordinal[start:stop], side.action[start:stop]]) for side in (events, simulated)]
        theirs, ours = (np.lexsort(key[::-1]) for key in keys)
        if (keys[0][:, theirs] == keys[1][:, ours]).all():
            order[start + ours] = start + theirs
    return replace(
        events,
        action=events.action[order],
        bytes=events.bytes[order],
        ordinal=events.ordinal[order],
        address=events.address[order],
    )


def named_as(events: EventSequence, simulated: EventSequence) -> EventSequence:
    """Returns the events, with the allocations of modules that run in the order of a set numbered as in the simulation,
    where they end alike.
    """
    names = np.array([name.startswith(SET_ORDER) for name in simulated.operators], bool)
    n = min(len(events), len(simulated))
    made = np.flatnonzero(
        names[simulated.operator[:n]] & (simulated.action[:n] == ALLOC) & (events.action[:n] == ALLOC)
    )
    if not len(made) or (simulated.ordinal[made] != events.ordinal[made]).any():
        return events
    loose = simulated.ordinal[made]
    ours, theirs = (
        side.ordinal[(side.action == FREE_REQUESTED) & np.isin(side.ordinal, loose)] for side in (simulated, events)
    )
    if len(ours) != len(theirs):
        return events
    ordinal = np.arange(int(events.ordinal.max()) + 1)
    ordinal[theirs] = ours
    freed = (events.action == FREE_REQUESTED) | (events.action == FREE_COMPLETED)
    return replace(events, ordinal=np.where(freed, ordinal[events.ordinal], events.ordinal))


def first_difference(a: EventSequence, b: EventSequence, addresses: bool = False) -> int | None:
    """Returns the first event whose action, bytes or alloc differ (with `addresses`, address too). None where the
    sequences are equal.

    Where one is a beginning of the other, it is the length of the shorter.
    """
    n = min(len(a), len(b))
    differs = (a.action[:n] != b.action[:n]) | (a.bytes[:n] != b.bytes[:n]) | (a.ordinal[:n] != b.ordinal[:n])
    if addresses:
        differs |= a.address[:n] != b.address[:n]
    if differs.any():
        return int(np.argmax(differs))
    return None if len(a) == len(b) else n


def _step(phase: str) -> int:
    number, _, kind = phase.partition("/")
    return int(number) if kind and number.isdigit() else -1


def _rank(sorted_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """[m] Number of equal values before each of some sorted ones."""
    positions = np.arange(len(sorted_values))
    return positions - np.searchsorted(sorted_values, sorted_values, side="left") if len(sorted_values) else positions
