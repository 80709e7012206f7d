"""Tape → Answer: PyTorch's caching allocator. Numba inside, numpy outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer, DriverAction, OutOfMemory
from memsim.allocator.message import message
from memsim.allocator.settings import Settings
from memsim.errors import InputError
from memsim.tape import Action, Tape

__all__ = ["Answer", "DriverAction", "OutOfMemory", "Settings", "allocate", "message"]

DEFAULT_DEVICE_MEMORY = 80 * 2**30
MOST_BYTES = 1 << 58  # more than any device has; sums stay below 2^63


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., int]:
    """The compiled allocator; numba is slow to import, and not everyone who imports memsim allocates."""
    from memsim.allocator.compiled import caching
    from memsim.allocator.compiled.stale import forget_stale

    compiled = caching.replay.stats.cache_path
    if compiled:
        forget_stale(Path(compiled), Path(caching.__file__).parent)
    return cast(Callable[..., int], caching.replay)


def allocate(
    tape: Tape,
    settings: Settings | None = None,
    device_memory: int | None = None,
    *,
    stop_at_oom: bool = True,
    addresses: NDArray[np.int64] | None = None,
    linux_addresses: bool = False,
    prefix: int = 0,
) -> Answer:
    """Answers every request of the Tape, on a device with so many bytes (80 GiB); stops at the first out of memory
    unless told otherwise.

    addresses: those that the driver gives the first segments (or reservations), of a recording; afterwards, and
    without, they count up from
    0x700000000000. linux_addresses: they are as on Linux (linux_addresses.py), which decides between equal free blocks
    up to torch 2.12.
    prefix: events that rebuild the state in which a recording began, which are served without the settings that change
    sizes.
    A request of 0 bytes gets address 0. Raises InputError for sizes that no device has.
    """
    from memsim.allocator.compiled import arena
    from memsim.allocator.compiled.driver import CALL_WORDS

    replay = _compiled()

    settings = Settings() if settings is None else settings
    memory = DEFAULT_DEVICE_MEMORY if device_memory is None else device_memory
    if not 0 < memory < MOST_BYTES:
        raise InputError(f"device memory: {memory} bytes; more than 0 and less than 2^58 is valid")
    action, size, stream = tape.action, tape.bytes, tape.stream
    if len(tape) and not (int(size.min()) >= 0 and int(size.max()) < MOST_BYTES):
        event = int(np.flatnonzero((size < 0) | (size >= MOST_BYTES))[0])
        raise InputError(
            f"event {event} of the tape: {int(size[event])} bytes; 0 and more, and less than 2^58, is valid"
        )
    handles = stream.view(np.uint64)
    ranks = np.zeros(1, np.uint64)
    uses = 0
    if stream.any():
        counts = np.bincount(action, minlength=5)
        uses = int(counts[Action.RECORD_STREAM])
        ranks = np.unique(handles[action != Action.FREE])
    records = int(np.count_nonzero(action == Action.ALLOC)) * (6 if settings.expandable_segments else 2) + 64
    heap = arena.blank(len(ranks), uses, records, records if linux_addresses else 0)
    heap[arena.DEFERS] = uses > 0
    heap[arena.DELAYED] = bool((action == Action.COMPLETE).any())
    given = np.zeros(0, np.int64) if addresses is None else addresses
    heap[arena.GIVEN] = len(given)
    n = len(tape)
    rows = np.zeros(9 * n, np.int64)
    block_of = np.zeros(tape.storages + 1, np.int64)  # at 0 what no storage has
    log = np.empty(4 * CALL_WORDS * records, np.int64)
    processed = 0
    for phase, stop in ((settings.plain, prefix), (settings, n)):
        phase.write(heap, memory)
        while processed < stop and not (stop_at_oom and heap[arena.FAILED]):
            before = processed
            processed = replay(
                heap,
                given,
                action,
                tape.storage,
                size,
                handles,
                ranks,
                block_of,
                rows,
                log,
                processed,
                stop,
                stop_at_oom,
            )
            if processed == before:
                # it was too short for all that the next event may ask of the driver
                log = np.concatenate([log, np.empty_like(log)])
    driver = log[: CALL_WORDS * heap[arena.CALLS]].reshape(-1, CALL_WORDS)
    out_of_memory = None
    if heap[arena.FAILED]:
        after, tried, free, allocated, reserved, rejected = (
            int(word) for word in heap[arena.FAILED : arena.FAILED + 6]
        )
        out_of_memory = OutOfMemory(
            after - 1, int(size[after - 1]), tried, free, memory, allocated, reserved, bool(rejected)
        )
    row = rows.reshape(9, n)
    return Answer(
        address=row[0],
        block=row[1],
        requested=row[2],
        allocated=row[3],
        active=row[6] if uses else row[3],
        reserved=row[4],
        segments=row[5],
        retries=row[7],
        ooms=row[8],
        driver_event=driver[:, 0],
        driver_action=driver[:, 1].astype(np.uint8),
        driver_address=driver[:, 2],
        driver_bytes=driver[:, 3],
        processed=int(processed),
        out_of_memory=out_of_memory,
    )
