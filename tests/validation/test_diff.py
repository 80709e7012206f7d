"""The first event at which two sides part, as people read it."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from memsim.allocator import allocate
from memsim.cli.diff import diff_table
from memsim.results.answers import Timeline
from memsim.traces.recorder import ACTIONS, Recording, to_tape
from memsim.validation import diff

EVENTS = [
    ("segment_alloc", 0x700000000000, 2 << 20),
    ("alloc", 0x700000000000, 100),
    ("alloc", 0x700000000200, 600),
    ("free_requested", 0x700000000000, 100),
    ("free_completed", 0x700000000000, 100),
    ("segment_alloc", 0x700000200000, 20 << 20),
    ("alloc", 0x700000200000, 3 << 20),
]


def recording(events: list[tuple[str, int, int]] = EVENTS, phase: list[int] | None = None) -> Recording:
    n = len(events)
    return Recording(
        np.array([ACTIONS.index(action) for action, _, _ in events], np.uint8),
        np.array([address for _, address, _ in events], np.int64),
        np.array([count for _, _, count in events], np.int64),
        np.zeros(n, np.int64),
        np.array(phase or [0] * n, np.int32),
        ("0/forward", "1/forward", "2/forward"),
    )


def timeline(recorded: Recording) -> Timeline:
    requests = to_tape(recorded)
    return Timeline(requests, allocate(requests))


def printed(found: diff.Comparison, **options: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(diff_table(found, **options))
    return stream.getvalue()


def test_equal_to_the_last_event() -> None:
    found = diff.align(timeline(recording()), recording(), addresses=True)
    assert found.equal and printed(found).strip() == "Equal: all 7 events."


def test_the_first_difference_is_marked_between_its_neighbours_on_both_sides() -> None:
    other = list(EVENTS)
    other[2] = ("alloc", 0x700000000200, 700)
    found = diff.align(timeline(recording()), recording(other))
    assert found.first == 2 and not found.equal
    text = printed(found, context=1)
    marked = [line for line in text.splitlines() if "> 2" in line]
    assert len(marked) == 1 and marked[0].split() == [">", "2", "alloc", "#1", "600", "alloc", "#1", "700", "0/forward"]
    assert (
        "alloc #0" in text
        and "free_requested #0" in text
        and "free_completed" not in text
        and "segment_alloc" not in text
    )
    assert text.splitlines()[0].strip() == "Event 2 differs, the first of 7 recorded and 7 simulated; in 0/forward."


def test_addresses_are_compared_only_where_asked() -> None:
    moved = [(action, address + (4096 if address >= 0x700000200000 else 0), count) for action, address, count in EVENTS]
    assert diff.align(timeline(recording()), recording(moved)).equal
    found = diff.align(timeline(recording()), recording(moved), addresses=True)
    assert found.first == 5 and "0x700000201000" in printed(found, addresses=True)


def test_a_side_that_ends_early() -> None:
    short = diff.align(timeline(recording()), recording(EVENTS[:5]))
    assert short.first == 5
    text = printed(short)
    assert (
        "The first 5 events are equal; there the recording ends, and the simulation goes on for 2 more."
    ) in text and "(end)" in text


def test_clean_up_after_out_of_memory_and_later_steps_are_not_compared() -> None:
    stop = [*EVENTS[:2], ("oom", 5, 512)]
    assert diff.align(timeline(recording(EVENTS[:2])), recording(stop)).first == 2
    later = recording([*EVENTS, ("alloc", 0x700000000000, 77)], phase=[0, 0, 0, 0, 0, 1, 1, 2])
    assert not diff.align(timeline(recording()), later).equal
    assert diff.align(timeline(recording()), later, last_step=1).equal
