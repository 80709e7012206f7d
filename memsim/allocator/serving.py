"""Tape → Answer: hands the requests of a Tape to the compiled allocator, and makes an Answer of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer, OutOfMemory
from memsim.allocator.settings import Settings
from memsim.errors import InputError
from memsim.tape import Action, Tape

DEFAULT_DEVICE_MEMORY = 80 * 2**30
MOST_BYTES = 1 << 58  # more than any device has; sums stay below 2^63
UNLIMITED = 1 << 57  # bytes of a device that never runs out
ROWS, RARE = 6, 3  # number of n-word arrays: those that every event writes, and those that few Tapes need
Ints = NDArray[np.int64]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., int]:
    """Returns the compiled allocator. numba is slow to import, and not everyone who imports memsim allocates."""
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
    addresses: Ints | None = None,
    linux_addresses: bool = False,
    prefix: int = 0,
) -> Answer:
    """Answers every request of the Tape, on a device with `device_memory` bytes (default 80 GiB). It stops at the first
    out of memory, unless `stop_at_oom` is false.

    addresses: those that the driver gives the first segments (or reservations), from a recording. Later addresses count
    up from 0x700000000000, as all do without them.
    linux_addresses: addresses are as on Linux (linux_addresses.py), which decides between equal free blocks up to torch
    2.12.
    prefix: number of first events that rebuild the state in which a recording began. They are served without the
    settings that change sizes.

    A request of 0 bytes gets address 0. Raises InputError for sizes that no device has.
    """
    settings = Settings() if settings is None else settings
    memory = _checked(tape, DEFAULT_DEVICE_MEMORY if device_memory is None else device_memory)
    served = _begin(tape, settings, addresses, linux_addresses)
    served.run(settings.plain, memory, prefix, stop_at_oom)
    served.run(settings, memory, len(tape), stop_at_oom)
    return served.answer(memory)


def allocate_beyond(
    tape: Tape, settings: Settings, device_memory: int, *, linux_addresses: bool = False, prefix: int = 0
) -> tuple[Answer, Answer | None]:
    """Answers the Tape on a device with `device_memory` bytes. Where that runs out of memory, it answers once more
    without a limit.

    The two answers are equal up to the first request that the device may have no room for, and up to there events are
    served once. Raises InputError for sizes that no device has.
    """
    memory = _checked(tape, device_memory)
    served = _begin(tape, settings, None, linux_addresses)
    served.run(settings.plain, memory, prefix, True)
    # Garbage collection and expandable reservations depend on the limit before it is reached. There nothing is shared.
    alike = settings.garbage_collection_threshold == 0 and not settings.expandable_segments and not prefix
    beyond = served.up_to_limit(settings, memory) if alike else None
    served.run(settings, memory, len(tape), True)
    answer = served.answer(memory)
    if answer.out_of_memory is None:
        return answer, None
    if beyond is None:
        beyond = _begin(tape, settings, None, linux_addresses)
        beyond.run(settings.plain, UNLIMITED, prefix, True)
    beyond.run(settings, UNLIMITED, len(tape), True)
    return answer, beyond.answer(UNLIMITED)


def _checked(tape: Tape, memory: int) -> int:
    if not 0 < memory < MOST_BYTES:
        raise InputError(f"device memory: {memory} bytes; more than 0 and less than 2^58 is valid")
    size = tape.bytes
    if len(tape) and not (int(size.min()) >= 0 and int(size.max()) < MOST_BYTES):
        event = int(np.flatnonzero((size < 0) | (size >= MOST_BYTES))[0])
        raise InputError(
            f"event {event} of the tape: {int(size[event])} bytes; 0 and more, and less than 2^58, is valid"
        )
    return memory


@dataclass(eq=False)
class _Served:
    """A Tape of n events as far as it was served, and the arrays that the compiled allocator writes (caching.py)."""

    tape: Tape
    settings: Settings  # beyond what rebuilds the state in which a recording began
    given: Ints  # addresses for the driver to hand out first
    ranks: NDArray[np.uint64]  # the streams' handles in PyTorch's order
    uses: int  # number of uses of storages on other streams
    heap: Ints
    block_of: Ints  # [storages + 1]; index 0 stands for events without a storage
    rows: Ints  # [6 n]
    rare: Ints  # [3 n], zeros that cost nothing where none are written
    log: Ints  # the log of driver calls
    processed: int = 0

    def run(self, settings: Settings, memory: int, stop: int, stop_at_oom: bool) -> None:
        """Serves events up to `stop`, or to the first out of memory."""
        from memsim.allocator.compiled import arena

        settings.write(self.heap, memory)
        while self.processed < stop and not (stop_at_oom and self.heap[arena.FAILED]):
            before = self.processed
            self._replay(stop, stop_at_oom)
            if self.processed == before:
                # the log was too short for the calls that the next event may make to the driver
                self.log = np.concatenate([self.log, np.empty_like(self.log)])

    def up_to_limit(self, settings: Settings, memory: int) -> _Served | None:
        """Serves events up to the first that the device may have no room for. Returns a copy of the state there, None
        where there is no such event.
        """
        from memsim.allocator.compiled import arena

        settings.write(self.heap, memory)
        self.heap[arena.HALTS] = 1
        n, before = len(self.tape), -1
        while self.processed < n and self.heap[arena.HALTS]:
            if self.processed == before:
                self.log = np.concatenate([self.log, np.empty_like(self.log)])
            before = self.processed
            self._replay(n, True)
        halted = self.processed < n
        self.heap[arena.HALTS] = 0
        return self._copy() if halted else None

    def _replay(self, stop: int, stop_at_oom: bool) -> None:
        tape = self.tape
        self.processed = _compiled()(
            self.heap,
            self.given,
            tape.action,
            tape.storage,
            tape.bytes,
            tape.stream.view(np.uint64),
            self.ranks,
            self.block_of,
            self.rows,
            self.rare,
            self.log,
            self.processed,
            stop,
            stop_at_oom,
        )

    def _copy(self) -> _Served:
        from memsim.allocator.compiled import arena
        from memsim.allocator.compiled.driver import CALL_WORDS

        n, done = len(self.tape), self.processed
        rows = np.empty_like(self.rows)
        rows.reshape(ROWS, n)[:, :done] = self.rows.reshape(ROWS, n)[:, :done]
        rare = self.rare.copy() if self.uses else np.zeros_like(self.rare)
        log, used = np.empty_like(self.log), CALL_WORDS * int(self.heap[arena.CALLS])
        log[:used] = self.log[:used]
        heap, block_of = arena.copied(self.heap), self.block_of.copy()
        return replace(self, heap=heap, block_of=block_of, rows=rows, rare=rare, log=log)

    def answer(self, memory: int) -> Answer:
        """Returns the Answer so far, on a device with `memory` bytes."""
        from memsim.allocator.compiled import arena
        from memsim.allocator.compiled.driver import CALL_WORDS

        n, done = len(self.tape), self.processed
        driver = self.log[: CALL_WORDS * self.heap[arena.CALLS]].reshape(-1, CALL_WORDS)
        row, rare = self.rows.reshape(ROWS, n), self.rare.reshape(RARE, n)
        row[:, done:] = 0
        return Answer(
            address=row[0],
            block=row[1],
            requested=row[2],
            allocated=row[3],
            active=rare[0] if self.uses else row[3],
            reserved=row[4],
            segments=row[5],
            retries=rare[1],
            ooms=rare[2],
            driver_event=driver[:, 0],
            driver_action=driver[:, 1].astype(np.uint8),
            driver_address=driver[:, 2],
            driver_bytes=driver[:, 3],
            processed=int(done),
            out_of_memory=self._failure(memory),
        )

    def _failure(self, memory: int) -> OutOfMemory | None:
        from memsim.allocator.compiled import arena

        if not self.heap[arena.FAILED]:
            return None
        after, tried, free, allocated, reserved, rejected = (
            int(word) for word in self.heap[arena.FAILED : arena.FAILED + 6]
        )
        requested = int(self.tape.bytes[after - 1])
        rounded = self.settings.rounded(requested)
        return OutOfMemory(after - 1, requested, tried, free, memory, allocated, reserved, bool(rejected), rounded)


def _begin(tape: Tape, settings: Settings, addresses: Ints | None, linux_addresses: bool) -> _Served:
    """Returns a state in which nothing is served yet, with room for all that the Tape may need."""
    from memsim.allocator.compiled import arena
    from memsim.allocator.compiled.driver import CALL_WORDS

    action, stream, n = tape.action, tape.stream, len(tape)
    ranks, uses = np.zeros(1, np.uint64), 0
    if stream.any():
        uses = int(np.count_nonzero(action == Action.RECORD_STREAM))
        ranks = np.unique(stream.view(np.uint64)[action != Action.FREE])
    records = int(np.count_nonzero(action == Action.ALLOC)) * (6 if settings.expandable_segments else 2) + 64
    heap = arena.blank(len(ranks), uses, records, records if linux_addresses else 0)
    heap[arena.DEFERS] = uses > 0
    heap[arena.DELAYED] = bool((action == Action.COMPLETE).any())
    given = np.zeros(0, np.int64) if addresses is None else addresses
    heap[arena.GIVEN] = len(given)
    return _Served(
        tape=tape,
        settings=settings,
        given=given,
        ranks=ranks,
        uses=uses,
        heap=heap,
        block_of=np.zeros(tape.storages + 1, np.int64),
        rows=np.empty(ROWS * n, np.int64),
        rare=np.zeros(RARE * n, np.int64),
        log=np.empty(4 * CALL_WORDS * records, np.int64),
    )
