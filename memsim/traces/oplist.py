"""Operation lists: rows (kind, id, bytes, stream), as ../shared/oracle/allocator/replay.cpp reads them, ↔ Tape."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memsim.tape import Action, Category, Tape

_ACTIONS = (Action.ALLOC, Action.FREE, Action.EMPTY_CACHE, Action.RECORD_STREAM)  # by kind


def tape_of_operations(operations: NDArray[np.int64]) -> Tape:
    """Returns the Tape of an operation list [n, 4]. An id may be allocated again once it is free; each allocation is a
    storage of its own.
    """
    kind, identity, size, stream = (np.ascontiguousarray(column) for column in operations.T)
    action = np.array(_ACTIONS, np.uint8)[kind]
    n = len(kind)
    storage = np.full(n, -1, np.int64)
    allocs = kind == 0
    storage[allocs] = np.arange(allocs.sum())
    # The storage of any other row is that of the last ALLOC of its id: sorted by id and then by place, the ALLOC before
    # it.
    order = np.argsort(identity, kind="stable")
    order = order[kind[order] != 2]
    before = np.maximum.accumulate(np.where(allocs[order], np.arange(len(order)), -1))
    known = before >= 0
    owner = np.where(known, order[before], 0)
    storage[order] = np.where(known & (identity[owner] == identity[order]), storage[owner], -1)
    # RECORD_STREAM and FREE of an id that was never allocated do nothing in the original. Here -1 leaves them out of
    # the storages.
    requested = np.zeros(n, np.int64)
    requested[allocs] = size[allocs]
    sizes = requested[allocs]
    frees = (kind == 1) & (storage >= 0)
    requested[frees] = sizes[storage[frees]]
    return Tape(
        action=action,
        storage=storage,
        bytes=requested,
        stream=np.where(kind == 1, 0, stream),
        phase=np.zeros(n, np.int32),
        operator=np.zeros(n, np.int32),
        layer=np.full(n, -1, np.int32),
        category=np.full(n, Category.UNATTRIBUTED, np.uint8),
        phases=("trace",),
        operators=("",),
    )


def operations_of_tape(tape: Tape) -> NDArray[np.int64]:
    """Returns the operation list [n, 4] of a Tape without COMPLETE events. Its streams are numbered in order from 0,
    the default stream.
    """
    kind = np.zeros(5, np.int64)
    kind[list(_ACTIONS)] = np.arange(len(_ACTIONS))
    handles = np.unique(np.append(tape.stream.view(np.uint64), np.uint64(0)))
    frees = tape.action == Action.FREE
    stream = np.where(frees, 0, np.searchsorted(handles, tape.stream.view(np.uint64)))
    size = np.where(tape.action == Action.ALLOC, tape.bytes, 0)
    return np.stack([kind[tape.action], np.maximum(tape.storage, 0), size, stream], axis=1)
