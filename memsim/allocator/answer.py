"""The answer of an allocator to a Tape."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class DriverAction(IntEnum):
    """Calls that an allocator makes to the driver."""

    SEGMENT_ALLOC = 0
    SEGMENT_FREE = 1
    SEGMENT_MAP = 2
    SEGMENT_UNMAP = 3


@dataclass(frozen=True, eq=False)
class OutOfMemory:
    """An ALLOC that could not be served. All fields but `event` and `rejected` are in bytes."""

    event: int  # index into the Tape
    requested: int  # bytes asked for, before rounding
    tried: int  # size asked of the driver ("Tried to allocate …")
    device_free: int
    device_memory: int
    allocated: int
    reserved: int  # after every cached segment had been given back
    rejected: bool = False  # by throw_on_cudamalloc_oom, before anything was tried
    rounded: int = 0  # the block that it looked for, as the settings round a request


@dataclass(frozen=True, eq=False)
class Answer:
    """For each event of a Tape (arrays of length n): addresses, and the allocator's counters after the event, in bytes.

    `requested` ≤ `allocated` ≤ `active` ≤ `reserved`, as PyTorch's memory_stats() counts them.
    """

    address: NDArray[np.int64]  # [n] of the block handed out or freed; -1 where an ALLOC failed; 0 for other actions
    block: NDArray[np.int64]  # [n] bytes of that whole block (0 where there is none)
    requested: NDArray[np.int64]  # [n]
    allocated: NDArray[np.int64]  # [n]
    active: NDArray[np.int64]  # [n]
    reserved: NDArray[np.int64]  # [n]
    segments: NDArray[np.int64]  # [n] segments held (expandable memory counts none)
    retries: NDArray[np.int64]  # [n] num_alloc_retries so far
    ooms: NDArray[np.int64]  # [n] num_ooms so far
    driver_event: NDArray[np.int64]  # [m] the Tape's event during which the driver was called
    driver_action: NDArray[np.uint8]  # [m] DriverAction
    driver_address: NDArray[np.int64]  # [m]
    driver_bytes: NDArray[np.int64]  # [m]
    processed: int  # number of events answered: n, or fewer where it stopped at out of memory (later entries are zero)
    out_of_memory: OutOfMemory | None  # the first failure
