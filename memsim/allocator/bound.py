"""Divides the memory that a run reserves into what its own requests cost and fragmentation, by bounds that hold for any
allocator.

    largest amount live at once ≤ best known packing ≤ reserved

The first is a lower bound for every allocator, even one that moves blocks. The second is an offline placement: every
lifetime is known in advance, and every buffer keeps one address. Finding the lowest is NP-hard (dynamic storage
allocation; Garey and Johnson, problem SR2). Here the best of several greedy orders is taken, with which TensorFlow
Lite's planner, TelaMalloc (Maas et al., ASPLOS 2022) and MiniMalloc (Moffitt, ASPLOS 2023) start. The CSV files are
google/minimalloc's.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.errors import InputError
from memsim.tape import Action, Tape

ALIGNMENT = 512  # bytes; the allocator's own
GOOD_ENOUGH = 2000  # a packing at most 1/2000 above the lower bound is not improved
FEW = 2000  # up to this number of buffers more is tried
_CHECKPOINTS = 4_000_000  # about the number of entries that the index of live buffers may have
_EFFORT = 60_000_000  # about the number of pairs of buffers that the improvement may look at: some tenths of a second
_UNPLACED = 1 << 62

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Buffers:
    """Buffers to place; arrays of length n."""

    lower: NDArray[np.int64]  # [n] the first moment of its life
    upper: NDArray[np.int64]  # [n] the moment after the last: lifetimes are half-open
    size: NDArray[np.int64]  # [n] bytes

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, eq=False)
class Packing:
    """The place of each buffer."""

    offset: NDArray[np.int64]  # [n] bytes
    height: int  # bytes; the largest offset + size
    order: str  # the greedy order that found it


@dataclass(frozen=True)
class Bounds:
    """Bounds in bytes; each is at most the next."""

    live: int  # the largest sum of requested bytes alive at once: no allocator needs less
    # The least memory for which a placement with fixed addresses is known. None: there were too many buffers to look
    # for one.
    packing: int | None
    reserved: int  # the simulated allocator's reserved memory at its peak


def buffers_of(tape: Tape, answer: Answer | None = None, *, alignment: int = ALIGNMENT) -> Buffers:
    """Returns the Tape's storages as buffers, in the order of their ALLOCs, with sizes rounded up. A storage that is
    never freed lives to the end. Moments are event indices.

    With an Answer, only the storages that it served.
    """
    n = len(tape) if answer is None else answer.processed
    action, storage = tape.action[:n], tape.storage[:n]
    served = tape.bytes[:n] > 0 if answer is None else answer.address[:n] > 0
    allocs = np.flatnonzero((action == Action.ALLOC) & served)
    frees = np.flatnonzero((action == Action.FREE) & (storage >= 0))
    upper = np.full(tape.storages, n, np.int64)
    upper[storage[frees]] = frees
    return Buffers(allocs, upper[storage[allocs]], -(-tape.bytes[allocs] // alignment) * alignment)


def most_live(buffers: Buffers) -> int:
    """Largest sum of sizes alive at one moment, in bytes."""
    if not len(buffers):
        return 0
    moments = np.concatenate([buffers.upper, buffers.lower])  # at one moment, ends come before beginnings
    order = np.argsort(moments, kind="stable")
    return int(np.cumsum(np.concatenate([-buffers.size, buffers.size])[order]).max())


def pack(buffers: Buffers) -> Packing:
    """Returns the best packing of several greedy orders, and then of orders in which the buffer that lies highest is
    moved forward, until the lower bound or the limit of effort is reached.

    The same buffers give the same packing.
    """
    live, n = most_live(buffers), len(buffers)
    if n == 0:
        return Packing(np.zeros(0, np.int64), 0, "none")
    by_start = np.argsort(buffers.lower, kind="stable")
    lower, upper, size = (
        np.ascontiguousarray(array[by_start]) for array in (buffers.lower, buffers.upper, buffers.size)
    )
    best: Packing | None = None
    # Buffers that live to the end all meet there. Where their sum and the largest sum of the rest occur at the same
    # moment, they are laid out from 0 on, and not moved again.
    lasting = upper == upper.max()
    ground = int(size[lasting].sum())
    passing = Buffers(lower[~lasting], upper[~lasting], size[~lasting])
    free = ground + most_live(passing) == live
    for stacked in (True,) if free else (False, True) if n <= FEW else (False,):
        rest = np.flatnonzero(~lasting) if stacked else np.arange(n)
        floor = ground if stacked else 0
        offset, height, name = _place_parts(lower[rest], upper[rest], size[rest], live - floor)
        if best is None or floor + height < best.height:
            placed = np.cumsum(size * lasting) - size * lasting
            placed[rest] = offset + floor
            found = np.empty(n, np.int64)
            found[by_start] = placed
            best = Packing(found, floor + height, f"lasting, then {name}" if stacked else name)
        if best.height == live:
            break
    assert best is not None
    return best


def _place_parts(lower: Column, upper: Column, size: Column, goal: int) -> tuple[Column, int, str]:
    """Does as `_place_best`, part by part. At some moments nothing is alive, as between the steps of a training run,
    and what lies between two such moments repeats.
    """
    n = len(size)
    if n == 0:
        return size, 0, "nothing"
    starts = np.flatnonzero(np.concatenate([[True], lower[1:] >= np.maximum.accumulate(upper)[:-1]]))
    ends = np.append(starts[1:], n)
    offset, height, longest, order = np.zeros(n, np.int64), int(size.max()), 0, "side by side"
    found: dict[bytes, tuple[Column, int, str]] = {}
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        part = slice(start, end)
        moments = np.concatenate([lower[part], upper[part]])
        # Only the order of the moments matters. So a part is found again in a step that has other events between the
        # same moments.
        rank = np.unique(moments, return_inverse=True)[1] if end - start > FEW else moments - lower[start]
        key = np.concatenate([rank, size[part]]).tobytes()
        if key not in found:
            found[key] = _place_best(rank[: end - start], rank[end - start :], size[part], goal)
        offset[part], high, name = found[key]
        if end - start > longest:
            longest, order = end - start, name
        height = max(height, high)
    return offset, height, order


def _place_best(lower: Column, upper: Column, size: Column, goal: int) -> tuple[Column, int, str]:
    """Returns (offsets, height, order's name) of the best order found for buffers sorted by their beginning."""
    from memsim.allocator.compiled.packing import alive_at, place

    n = len(size)
    if n == 0:
        return size, 0, "nothing"
    life = upper - lower
    mean_live = max(1, int(float(life.sum()) / int(upper.max() - lower.min())))
    every = max(64, mean_live * n // _CHECKPOINTS)
    first, members = alive_at(lower, upper, every)
    best_offset, best_height, best_name, best_order = size, _UNPLACED, "", size
    greedy = {
        "largest first": (-life, -size),
        "longest first": (-size, -life),
        "largest area first": (-size, -size.astype(float) * life),
    }
    for name, keys in greedy.items():
        order, offset = np.lexsort(keys), np.full(n, -1, np.int64)
        height = int(place(lower, upper, size, order, offset, first, members, every, best_height - 1))
        if height < best_height:
            best_offset, best_height, best_name, best_order = offset, height, name, order
        if best_height <= goal + goal // GOOD_ENOUGH:
            return best_offset, best_height, best_name
    random = np.random.default_rng(0)
    order, offset, height = best_order, best_offset, best_height
    for _ in range(min(600, _EFFORT // (n * mean_live))):
        highest = int(np.argmax((offset + size)[order] == height))
        to = int(random.integers(0, highest + 1))
        order = np.concatenate([order[:to], order[highest : highest + 1], order[to:highest], order[highest + 1 :]])
        offset = np.full(n, -1, np.int64)
        height = int(place(lower, upper, size, order, offset, first, members, every, _UNPLACED))
        if height < best_height:
            best_offset, best_height, best_name = offset, height, "improved"
        if best_height <= goal:
            break
    return best_offset, best_height, best_name


def bounds(tape: Tape, answer: Answer, *, first: int = 0, most_pairs: int | None = None) -> Bounds:
    """Returns the bounds of what the allocator served, from event `first` on. No packing is looked for where more than
    `most_pairs` pairs of buffers would meet.
    """
    reserved = int(answer.reserved[first : answer.processed].max(initial=0))
    live = most_live(_since(buffers_of(tape, answer, alignment=1), first))
    buffers = _since(buffers_of(tape, answer), first)
    passing = buffers.upper < answer.processed  # no place is searched for buffers that last to the end
    meetings = float((buffers.upper - buffers.lower)[passing].sum()) / max(answer.processed, 1) * int(passing.sum())
    if most_pairs is not None and meetings > most_pairs:
        return Bounds(live, None, reserved)
    return Bounds(live, min(pack(buffers).height, reserved), reserved)


def _since(buffers: Buffers, first: int) -> Buffers:
    """Returns the buffers that live at or after a moment, as if they began no earlier."""
    kept = buffers.upper > first
    return Buffers(np.maximum(buffers.lower[kept], first), buffers.upper[kept], buffers.size[kept])


def load_csv(path: str | Path) -> Buffers:
    """Reads google/minimalloc's format: columns id, lower, upper, size, lifetimes half-open. Raises InputError."""
    columns: dict[str, list[int]] = {"lower": [], "upper": [], "size": []}
    try:
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [key for key in ("id", *columns) if key not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: {missing[0]}: no such column; id, lower, upper and size are needed")
            for row in reader:
                for key, column in columns.items():
                    value = row[key] or ""
                    if not value.strip().isdigit():
                        raise InputError(
                            f"{path}: line {reader.line_num}: {key}: {value!r} is not a whole number, 0 or more"
                        )
                    column.append(int(value))
                if columns["upper"][-1] <= columns["lower"][-1]:
                    raise InputError(f"{path}: line {reader.line_num}: upper: must be greater than lower")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from None
    if max((max(column, default=0) for column in columns.values()), default=0) >= 1 << 48:
        raise InputError(f"{path}: a number is 2^48 or more")
    return Buffers(*(np.array(columns[key], np.int64) for key in ("lower", "upper", "size")))
