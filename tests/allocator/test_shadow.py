"""The allocator under hypothesis: any settings, any operations, held to the shadow validator at every one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings as effort, strategies as st
from numpy.typing import NDArray
from oplists import MIB, operation_lists, settings_strings
from shadow import Shadow, structure

from memsim.allocator import Answer, Settings, allocate
from memsim.allocator.compiled import arena
from memsim.allocator.compiled.caching import replay
from memsim.allocator.compiled.driver import CALL_WORDS
from memsim.allocator.serving import UNLIMITED, allocate_beyond
from memsim.traces.oplist import tape_of_operations

DEVICES = st.sampled_from((70 * MIB, 150 * MIB + 12345, 300 * MIB, 2048 * MIB))
VERSIONS = ("2.6.0", "2.11.0", "2.12.1", "2.15.0")


@given(operations=operation_lists(), text=settings_strings(), device=DEVICES)
@effort(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_are_sound_at_every_operation(operations: NDArray[np.int64], text: str, device: int) -> None:
    tape = tape_of_operations(operations)
    shadow = Shadow(tape, allocate(tape, Settings.parse(text), device, stop_at_oom=False))
    for event in range(len(tape)):
        shadow.check(event)
    assert shadow.calls == len(shadow.answer.driver_event)
    assert int(shadow.answer.reserved.max()) <= device


@given(
    operations=operation_lists(),
    text=settings_strings(),
    device=DEVICES,
    torch=st.sampled_from(VERSIONS),
    linux=st.booleans(),
)
@effort(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_would_be_needed_is_what_a_device_without_limit_answers(
    operations: NDArray[np.int64], text: str, device: int, torch: str, linux: bool
) -> None:
    """`allocate_beyond` serves what both have in common once."""
    tape, settings = tape_of_operations(operations), dataclasses.replace(Settings.parse(text), torch=torch)
    limited, unlimited = allocate_beyond(tape, settings, device, linux_addresses=linux)
    same(limited, allocate(tape, settings, device, linux_addresses=linux))
    assert (unlimited is not None) == (limited.out_of_memory is not None)
    if unlimited is not None:
        same(unlimited, allocate(tape, settings, UNLIMITED, linux_addresses=linux))


def same(ours: Answer, theirs: Answer) -> None:
    mine, other = dataclasses.asdict(ours), dataclasses.asdict(theirs)
    for name, value in mine.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("torch", VERSIONS)
@given(operations=operation_lists(), text=settings_strings(), device=DEVICES)
@effort(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_blocks_tile_segments_at_every_operation(
    torch: str, operations: NDArray[np.int64], text: str, device: int
) -> None:
    tape = tape_of_operations(operations)
    settings = dataclasses.replace(Settings.parse(text), torch=torch)
    whole = allocate(tape, settings, device, stop_at_oom=False)
    handles = tape.stream.view(np.uint64)
    ranks = np.unique(handles)
    heap = arena.blank(len(ranks), len(tape), 6 * len(tape) + 64)
    settings.write(heap, device)
    heap[arena.DEFERS] = 1
    block_of, log = np.zeros(tape.storages + 1, np.int64), np.zeros(CALL_WORDS * 4096, np.int64)
    given_addresses = np.zeros(0, np.int64)
    for e in range(len(tape)):  # the compiled allocator, an event at a time
        upto = slice(0, e + 1)
        rows, rare = np.zeros(6 * (e + 1), np.int64), np.zeros(3 * (e + 1), np.int64)
        columns = (tape.action[upto], tape.storage[upto], tape.bytes[upto], handles[upto])
        assert replay(heap, given_addresses, *columns, ranks, block_of, rows, rare, log, e, e + 1, False) == e + 1
        assert rows[e] == whole.address[e]
        segments = structure(heap)
        mapped = [[b for b in run if not int(heap[b + arena.META]) & arena.IS_UNMAPPED] for run in segments]
        assert (
            sum(int(heap[b + arena.SIZE]) for run in mapped for b in run)
            == int(heap[arena.RESERVED])
            == whole.reserved[e]
        )
        ordinary = [run for run in segments if not int(heap[run[0] + arena.META]) & arena.IS_EXPANDABLE]
        assert len(ordinary) == int(heap[arena.SEGMENTS])


def test_a_log_of_driver_calls_that_is_too_short_stops_the_replay_and_can_be_made_longer() -> None:
    tape = tape_of_operations(np.array([(0, 0, 30 * MIB, 0), (1, 0, 0, 0), (2, 0, 0, 0), (0, 1, 512, 0)], np.int64))
    heap = arena.blank(1, 0, 64)
    Settings().write(heap, 1 << 30)
    block_of, rows, rare = np.zeros(3, np.int64), np.zeros(6 * 4, np.int64), np.zeros(3 * 4, np.int64)
    columns = (
        np.zeros(0, np.int64),
        tape.action,
        tape.storage,
        tape.bytes,
        tape.stream.view(np.uint64),
        np.zeros(1, np.uint64),
        block_of,
        rows,
        rare,
    )
    assert replay(heap, *columns, np.zeros(CALL_WORDS * 17, np.int64), 0, 4, False) == 2
    assert replay(heap, *columns, np.zeros(CALL_WORDS * 64, np.int64), 2, 4, False) == 4
    assert rows[3] == allocate(tape).address[3]
