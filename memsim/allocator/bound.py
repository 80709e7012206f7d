"""How much of the memory that a run reserves its own requests cost, and how much fragmentation: bounds that hold for any allocator.

    largest amount live at once ≤ best known packing ≤ reserved

The first is a lower bound for every allocator, even one that moves blocks. The second is an offline placement: every lifetime is known in
advance and every buffer keeps one address. Finding the lowest is NP-hard (dynamic storage allocation; Garey and Johnson, problem SR2); here
the best of several greedy orders is taken, as TensorFlow Lite's planner, TelaMalloc (Maas et al., ASPLOS 2022) and MiniMalloc (Moffitt, ASPLOS
2023) use them for a start. The CSV files are google/minimalloc's.
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
FEW = 2000  # buffers of which more is tried
_CHECKPOINTS = 4_000_000  # about how many entries the index of live buffers may have
_EFFORT = 60_000_000  # about how many pairs of buffers the improvement may look at: some tenths of a second
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
    """Where each buffer lies."""

    offset: NDArray[np.int64]  # [n] bytes
    height: int  # bytes; the largest offset + size
    order: str  # the greedy order that found it


@dataclass(frozen=True)
class Bounds:
    """Bytes; each is at most the next."""

    live: int  # the largest sum of requested bytes alive at once: no allocator needs less
    packing: int  # the least for which a placement with fixed addresses is known
    reserved: int  # what the simulated allocator reserved at its peak


def buffers_of(tape: Tape, answer: Answer | None = None, *, alignment: int = ALIGNMENT) -> Buffers:
    """The Tape's storages, in order of their ALLOCs, sizes rounded up; what is never freed lives to the end. Moments are event indices.

    With an Answer, only those that it served.
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
    """The largest sum of sizes alive at one moment, in bytes."""
    if not len(buffers):
        return 0
    moments = np.concatenate([buffers.upper, buffers.lower])  # at one moment, ends come before beginnings
    order = np.argsort(moments, kind="stable")
    return int(np.cumsum(np.concatenate([-buffers.size, buffers.size])[order]).max())


def pack(buffers: Buffers) -> Packing:
    """The best of several greedy orders, then of orders in which what lies highest is moved forward, until the lower bound or the effort is reached.

    The same buffers give the same packing.
    """
    live, n = most_live(buffers), len(buffers)
    if n == 0:
        return Packing(np.zeros(0, np.int64), 0, "none")
    by_start = np.argsort(buffers.lower, kind="stable")
    lower, upper, size = (np.ascontiguousarray(array[by_start]) for array in (buffers.lower, buffers.upper, buffers.size))
    best: Packing | None = None
    # What lives to the end excludes each other at the end: laid out first, from 0 on, it is a good beginning for a training run.
    lasting = upper == upper.max()
    for stacked in (True, False) if n <= FEW else (True,):
        base = np.where(lasting & stacked, np.cumsum(size * lasting) - size * lasting, 0)
        ground = int((size * lasting).sum()) if stacked else 0
        rest = np.flatnonzero(~lasting) if stacked else np.arange(n)
        offset, height, name = _place_best(lower[rest], upper[rest], size[rest], live - ground)
        if best is None or ground + height < best.height:
            placed = base.copy()
            placed[rest] = offset + ground
            found = np.empty(n, np.int64)
            found[by_start] = placed
            best = Packing(found, ground + height, f"lasting, then {name}" if stacked else name)
        if best.height == live:
            break
    assert best is not None
    return best


def _place_best(lower: Column, upper: Column, size: Column, goal: int) -> tuple[Column, int, str]:
    """(offsets, height, order's name) of the best order found for buffers sorted by their beginning."""
    from memsim.allocator.packing import alive_at, place

    n = len(size)
    if n == 0:
        return size, 0, "nothing"
    life = upper - lower
    mean_live = max(1, int(float(life.sum()) / int(upper.max() - lower.min())))
    every = max(64, mean_live * n // _CHECKPOINTS)
    first, members = alive_at(lower, upper, every)
    best_offset, best_height, best_name, best_order = size, _UNPLACED, "", size
    greedy = {"largest first": (-life, -size), "longest first": (-size, -life), "largest area first": (-size, -size.astype(float) * life)}
    for name, keys in greedy.items():
        order, offset = np.lexsort(keys), np.full(n, -1, np.int64)
        height = int(place(lower, upper, size, order, offset, first, members, every, best_height - 1))
        if height < best_height:
            best_offset, best_height, best_name, best_order = offset, height, name, order
        if best_height <= goal:
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


def bounds(tape: Tape, answer: Answer) -> Bounds:
    """The chain for what the allocator served."""
    reserved = int(answer.reserved[: answer.processed].max(initial=0))
    live = most_live(buffers_of(tape, answer, alignment=1))
    return Bounds(live, min(pack(buffers_of(tape, answer)).height, reserved), reserved)


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
                        raise InputError(f"{path}: line {reader.line_num}: {key}: {value!r} is not a whole number, 0 or more")
                    column.append(int(value))
                if columns["upper"][-1] <= columns["lower"][-1]:
                    raise InputError(f"{path}: line {reader.line_num}: upper: must be greater than lower")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from None
    if max((max(column, default=0) for column in columns.values()), default=0) >= 1 << 48:
        raise InputError(f"{path}: a number is 2^48 or more")
    return Buffers(*(np.array(columns[key], np.int64) for key in ("lower", "upper", "size")))
