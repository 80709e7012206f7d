"""Reads the recordings of ../shared/golden for tests that need a Tape and nothing else of the recorder's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from memsim.tape import Action, Category, Tape

ALLOC, FREE, COMPLETED, OOM = 0, 1, 2, 8  # indexes into the recorder's actions


def load(path: Path) -> Tape:
    """The Tape of a recorder's .npz; an `oom` event is the ALLOC that failed."""
    with np.load(path) as file:
        action, address, count, stream, phase = (file[key] for key in ("action", "address", "bytes", "stream", "phase"))
        phases = tuple(str(name) for name in file["phases"])
    kept = np.flatnonzero((action == ALLOC) | (action == FREE) | (action == OOM))
    storage = np.empty(len(kept), np.int64)
    alive: dict[int, int] = {}
    born = 0
    for at, (kind, where) in enumerate(zip(action[kept].tolist(), address[kept].tolist(), strict=True)):
        if kind == FREE:
            storage[at] = alive.pop(where)
        else:
            storage[at] = born
            if kind == ALLOC:
                alive[where] = born
            born += 1
    n = len(kept)
    return Tape(
        action=np.where(action[kept] == FREE, Action.FREE, Action.ALLOC).astype(np.uint8),
        storage=storage,
        bytes=count[kept].astype(np.int64),
        stream=stream[kept].astype(np.int64),
        phase=phase[kept].astype(np.int32),
        operator=np.zeros(n, np.int32),
        layer=np.full(n, -1, np.int32),
        category=np.full(n, Category.UNATTRIBUTED, np.uint8),
        phases=phases,
        operators=("",),
    )


def result(path: Path) -> dict[str, Any]:
    """The recorder's .json beside `path`."""
    data: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return data
