"""Bounds, and the offline placement under an independent validator."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings as effort, strategies as st
from numpy.typing import NDArray
from oplists import MIB, Script, operation_lists

from memsim.allocator import allocate
from memsim.allocator.bound import Buffers, bounds, buffers_of, load_csv, most_live, pack
from memsim.errors import InputError
from memsim.traces.oplist import tape_of_operations


def buffers(*rows: tuple[int, int, int]) -> Buffers:
    """Rows lower, upper, size."""
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return Buffers(columns[:, 0], columns[:, 1], columns[:, 2])


def validate(problem: Buffers, offset: list[int], height: int) -> None:
    """Plain Python, every pair: who lives at the same time lies apart; nothing reaches above the height, something
    reaches it.
    """
    rows = list(zip(problem.lower.tolist(), problem.upper.tolist(), problem.size.tolist(), offset, strict=True))
    for (low, up, size, at), (other_low, other_up, other_size, other_at) in combinations(rows, 2):
        if low < other_up and other_low < up:
            assert at + size <= other_at or other_at + other_size <= at
    assert min((at for *_, at in rows), default=0) >= 0
    assert max((at + size for _, _, size, at in rows), default=0) == height


def live_by_moment(problem: Buffers) -> int:
    """The largest sum alive, moment by moment."""
    rows = list(zip(problem.lower.tolist(), problem.upper.tolist(), problem.size.tolist(), strict=True))
    return max((sum(size for low, up, size in rows if low <= moment < up) for moment, _, _ in rows), default=0)


INSTANCES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(1, 50)).map(
        lambda row: (row[0], row[0] + row[1], row[2])
    ),
    max_size=40,
)


@given(rows=INSTANCES)
@effort(max_examples=200, deadline=None)
def test_a_packing_is_valid_and_not_below_what_lives(rows: list[tuple[int, int, int]]) -> None:
    problem = buffers(*rows)
    packing = pack(problem)
    validate(problem, packing.offset.tolist(), packing.height)
    assert most_live(problem) == live_by_moment(problem)
    assert packing.height >= most_live(problem)


@given(operations=operation_lists(), stops=st.booleans())
@effort(max_examples=100, deadline=None)
def test_the_chain_holds(operations: NDArray[np.int64], stops: bool) -> None:
    tape = tape_of_operations(operations)
    found = bounds(tape, allocate(tape, None, 200 * MIB, stop_at_oom=stops))
    assert found.live <= found.packing <= found.reserved


def test_lifetimes_are_half_open() -> None:
    packing = pack(buffers((0, 5, 10), (5, 9, 10)))
    assert packing.height == 10
    assert packing.offset.tolist() == [0, 0]


def test_nothing_to_place() -> None:
    assert pack(buffers()).height == 0
    assert most_live(buffers()) == 0


def test_equal_to_the_lower_bound_where_that_can_be_reached() -> None:
    # Two long ones with short ones between them, as activations with temporaries: in order of time the second long one
    # would lie above a hole.
    problem = buffers((0, 10, 4), (1, 3, 8), (2, 10, 4), (4, 6, 8), (7, 9, 8))
    packing = pack(problem)
    assert packing.height == most_live(problem) == 16
    validate(problem, packing.offset.tolist(), packing.height)


def test_buffers_of_a_tape() -> None:
    script = Script()
    first = script.alloc(100)
    script.alloc(513)
    script.free(first)
    found = buffers_of(tape_of_operations(np.array(script.rows, np.int64)))
    assert found.lower.tolist() == [0, 1]
    assert found.upper.tolist() == [2, 3]
    assert found.size.tolist() == [512, 1024]


def test_a_run_that_ends_out_of_memory_is_bounded_up_to_there() -> None:
    script = Script()
    script.alloc(30 * MIB)
    script.alloc(30 * MIB)
    script.alloc(4000 * MIB)
    tape = tape_of_operations(np.array(script.rows, np.int64))
    found = bounds(tape, allocate(tape, None, 40 * MIB))
    assert found.reserved == 30 * MIB
    assert found.live == 30 * MIB


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "instance.csv"
    path.write_text("id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\n")
    problem = load_csv(path)
    assert problem.lower.tolist() == [0, 3, 0]
    assert pack(problem).height == 8


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id,lower,upper\nb1,0,3\n", "size"),
        ("", "id"),
        ("id,lower,upper,size\nb1,0,3,-4\n", "size"),
        ("id,lower,upper,size\nb1,0,3\n", "size"),
        ("id,lower,upper,size\nb1,5,5,1\n", "upper"),
        ("id,lower,upper,size\nb1,0,3,999999999999999999\n", "2^48"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "instance.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"instance\.csv") as caught:
        load_csv(path)
    assert named in str(caught.value)


def test_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_csv(tmp_path / "none.csv")
