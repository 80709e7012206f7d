"""The recorder's .npz: every event of PyTorch's allocator while a training job ran, in order.

Its arrays (../shared/golden/README.md): `action` (index into `actions`), `address`, `bytes`, `stream`,
`phase` (index into `phases`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError, show
from memsim.tape import Action, Category, Tape
from memsim.traces.npz import load_arrays

ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "snapshot",
    "oom",
)
ALLOC, FREE_REQUESTED, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE, SEGMENT_MAP, SEGMENT_UNMAP, SNAPSHOT, OOM = range(
    len(ACTIONS)
)
NUMBERS = {"action": np.uint8, "address": np.int64, "bytes": np.int64, "stream": np.int64, "phase": np.int32}


@dataclass(frozen=True, eq=False)
class Recording:
    """Events of a training job on a real or virtual GPU; all arrays have length n."""

    action: NDArray[np.uint8]  # [n] index into ACTIONS
    address: NDArray[np.int64]  # [n] of the block or segment; free device memory in bytes for oom
    bytes: NDArray[
        np.int64
    ]  # [n] requested for alloc, free_requested, free_completed; rounded to 512 for oom; the driver's for segment_*
    stream: NDArray[np.int64]  # [n]
    phase: NDArray[np.int32]  # [n] index into phases
    phases: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.action)


def load(path: str | Path) -> Recording:
    """Reads a recorder's .npz. Raises InputError, naming the file and the array, where it is not one."""
    names_of = dict.fromkeys(("actions", "phases"), ("U", 1))
    arrays = load_arrays(Path(path), "a recording", {**dict.fromkeys(NUMBERS, ("iu", 1)), **names_of})
    n = len(arrays["action"])
    names = [str(name) for name in arrays["actions"]]
    phases = tuple(str(name) for name in arrays["phases"])
    unknown = [name for name in names if name not in ACTIONS]
    if unknown:
        raise InputError(
            f"{path}: actions: {show(unknown[0])} is not an action of the recorder; valid are {', '.join(ACTIONS)}"
        )
    columns: dict[str, NDArray[Any]] = {}
    for key, kind in NUMBERS.items():
        column = arrays[key]
        if column.shape != (n,):
            raise InputError(f"{path}: {key}: has shape {column.shape}, but action has {n} events")
        limit = {"action": len(names) - 1, "phase": len(phases) - 1}.get(key, 2**63 - 1)
        if n and (int(column.min()) < 0 or int(column.max()) > limit):
            raise InputError(f"{path}: {key}: has values outside 0 … {limit}")
        columns[key] = column.astype(kind)
    codes = np.array([ACTIONS.index(name) for name in names], np.uint8)
    columns["action"] = codes[columns["action"]] if n else columns["action"]
    return Recording(**columns, phases=phases)


def ordinals(recording: Recording) -> NDArray[np.int64]:
    """[n] Number, counted in alloc events, of the alloc that an event makes or frees; -1 for other events.

    Raises InputError where an address is allocated twice or freed without having been allocated.
    """
    action, address = recording.action, recording.address
    result = np.full(len(action), -1, np.int64)
    at = np.flatnonzero(action <= FREE_COMPLETED)  # alloc, free_requested, free_completed
    made = np.cumsum(action[at] == ALLOC) - 1
    order = np.lexsort((at, address[at]))  # the life of each address, one after the other
    kind, where = action[at][order], address[at][order]
    fresh = np.ones(len(at), bool)
    fresh[1:] = where[1:] != where[:-1]
    before = np.where(fresh, FREE_COMPLETED, np.concatenate([[FREE_COMPLETED], kind[:-1]])) if len(at) else kind
    expected = np.array([FREE_COMPLETED, ALLOC, FREE_REQUESTED], np.uint8)[kind]
    wrong = np.flatnonzero(before != expected)
    if len(wrong):
        first = int(wrong[np.argmin(at[order][wrong])])
        event = int(at[order][first])
        reason = (
            "is allocated while it is in use",
            "is freed while it is not allocated",
            "completes a free that was not requested",
        )[int(kind[first])]
        raise InputError(f"event {event}: address {int(where[first])} {reason}")
    alloc_position = (
        np.maximum.accumulate(np.where(kind == ALLOC, np.arange(len(at)), 0)) if len(at) else np.zeros(0, np.int64)
    )
    result[at[order]] = made[order][alloc_position]
    return result


def to_tape(recording: Recording) -> Tape:
    """Returns the requests of a recording, with storages numbered in the order of their ALLOC, and nothing attributed.

    An `oom` is the ALLOC that failed, with its bytes already rounded to 512. Raises InputError as `ordinals` does.
    """
    kept = np.flatnonzero(
        (recording.action == ALLOC) | (recording.action == FREE_REQUESTED) | (recording.action == OOM)
    )
    action = recording.action[kept]
    born = action != FREE_REQUESTED
    number = np.cumsum(born) - 1  # number of the storage, failed ones included
    of_ordinal = number[action == ALLOC]
    n = len(kept)
    return Tape(
        action=np.where(born, Action.ALLOC, Action.FREE).astype(np.uint8),
        storage=np.where(action == OOM, number, _take(of_ordinal, ordinals(recording)[kept])).astype(np.int64),
        bytes=recording.bytes[kept],
        stream=recording.stream[kept],
        phase=recording.phase[kept],
        operator=np.zeros(n, np.int32),
        layer=np.full(n, -1, np.int32),
        category=np.full(n, Category.UNATTRIBUTED, np.uint8),
        phases=recording.phases,
        operators=("",),
    )


def _take(values: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns values[index], 0 where the index is -1."""
    return np.where(index >= 0, np.append(values, 0)[index], 0)
