"""Streams, delayed frees, the addresses of a recording, and what PyTorch's releases do differently."""

from __future__ import annotations

import dataclasses

import numpy as np
from oplists import BASE, MIB, Script

from memsim.allocator import Settings, allocate
from memsim.tape import Action, Tape
from memsim.traces.oplist import tape_of_operations


def two_holes() -> Tape:
    """Two free blocks of 4 MiB in two segments, the first of which was freed last, then a request for one."""
    script = Script()
    ids = [script.alloc(4 * MIB) for _ in range(10)]
    script.free(ids[1], ids[6])
    script.alloc(4 * MIB)
    return tape_of_operations(np.array(script.rows, np.int64))


def test_ties_between_segments() -> None:
    tape = two_holes()
    swapped = np.array([BASE + 512 * MIB, BASE], np.int64)  # the second segment lies below the first
    by_segment = allocate(tape, Settings(), addresses=swapped)
    by_address = allocate(tape, Settings(torch="2.11.0"), addresses=swapped)
    assert by_segment.address[-1] == by_segment.address[1]
    assert by_address.address[-1] == by_address.address[6]
    assert by_address.driver_address.tolist() == swapped.tolist()


def test_ties_by_creation_of_the_block() -> None:
    # In 2.12 a split makes a block of the head; the remainder stays the older. Both holes here are heads, and the first
    # is the older.
    assert allocate(two_holes(), Settings(torch="2.12.1")).address[-1] == allocate(two_holes(), Settings()).address[1]


def test_a_block_serves_no_other_stream() -> None:
    script = Script()
    script.free(script.alloc(5 * MIB, 0))
    script.alloc(5 * MIB, 1)
    answer = script.answer()
    assert answer.segments[-1] == 2
    assert answer.address[2] - BASE == 20 * MIB


def delayed(*, complete: bool) -> Tape:
    """A block that stream 7 uses is freed; stream 7 comes so far before, or after, the same is asked for again."""
    script = Script()
    used = script.alloc(5 * MIB)
    script.use(used, 7)
    script.free(used)
    script.alloc(5 * MIB)
    tape = tape_of_operations(np.array(script.rows, np.int64))
    at = 3 if complete else 4
    fill = {"action": Action.COMPLETE, "storage": -1, "stream": 7}
    columns = ("action", "storage", "bytes", "stream", "phase", "operator", "layer", "category")
    return dataclasses.replace(
        tape, **{name: np.insert(getattr(tape, name), at, fill.get(name, 0)) for name in columns}
    )


def test_events_complete_when_the_recording_says_so() -> None:
    soon, late = allocate(delayed(complete=True)), allocate(delayed(complete=False))
    assert soon.address[4] == soon.address[0]
    assert late.address[3] == late.address[0] + 5 * MIB
    assert (late.allocated[3], late.active[3]) == (5 * MIB, 10 * MIB)


def test_empty_cache_waits_for_what_is_pending() -> None:
    script = Script()
    used = script.alloc(30 * MIB)
    script.use(used, 1)
    script.free(used)
    script.empty()
    answer = script.answer()
    assert answer.active.tolist() == [30 * MIB, 30 * MIB, 30 * MIB, 0]
    assert answer.reserved[-1] == 0


def test_reservations_too_short_for_a_request_stay_before_2_15() -> None:
    script = Script()
    script.alloc(2 << 30)
    script.alloc(30 * MIB)
    tape = tape_of_operations(np.array(script.rows, np.int64))
    answers = [
        allocate(tape, dataclasses.replace(Settings(expandable_segments=True), torch=torch), 1 << 30, stop_at_oom=False)
        for torch in ("2.14.0", "2.15.0")
    ]
    assert answers[0].address[1] == BASE
    assert answers[1].address[1] > BASE
