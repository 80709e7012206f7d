"""Tape → Answer: PyTorch's caching allocator. Numba inside, numpy outside."""

from __future__ import annotations

import numpy as np

from memsim.allocator.answer import Answer, DriverAction, OutOfMemory
from memsim.allocator.settings import Settings
from memsim.tape import Tape

__all__ = ["Answer", "DriverAction", "OutOfMemory", "Settings", "allocate"]

DEFAULT_DEVICE_MEMORY = 80 * 2**30


def allocate(tape: Tape, settings: Settings | None = None, device_memory: int | None = None, *, stop_at_oom: bool = True) -> Answer:
    """Answers every request of the Tape, on a device with so many bytes (80 GiB); stops at the first out of memory unless told otherwise."""
    from memsim.allocator.caching import replay

    del settings  # only the defaults are modelled so far
    memory = DEFAULT_DEVICE_MEMORY if device_memory is None else device_memory
    rows, driver, processed, failure = replay(tape.action, tape.storage, tape.bytes, tape.storages, memory, stop_at_oom)
    out_of_memory = None
    if failure[0] >= 0:
        event, tried, free, allocated, reserved = (int(value) for value in failure)
        out_of_memory = OutOfMemory(event, int(tape.bytes[event]), tried, free, memory, allocated, reserved)
    return Answer(*rows, driver[0], driver[1].astype(np.uint8), driver[2], driver[3], int(processed), out_of_memory)
