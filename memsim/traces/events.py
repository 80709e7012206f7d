"""Allocator events as PyTorch records them (alloc, free_completed, segment_alloc …) → Tape and recorded addresses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from memsim.errors import InputError
from memsim.tape import Action, Category, Tape
from memsim.traces.trace import Trace

SMALL, SMALL_SEGMENT, UNIT = 1 << 20, 2 << 20, 512
KNOWN = ("alloc", "free_requested", "free_completed", "free", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "snapshot", "oom")
Event = tuple[str, int, int, int, int]  # action, address, bytes, stream, phase


@dataclass(frozen=True)
class Segment:
    """A segment and the blocks in it that are live, as (address, bytes requested)."""

    address: int
    bytes: int
    stream: int
    small: bool
    live: tuple[tuple[int, int], ...]


class _Rows:
    """The Tape's columns while they grow."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.address: list[int] = []
        self.known: list[bool] = []
        self.live: dict[int, tuple[int, int]] = {}  # address: storage, bytes
        self.storages = 0

    def alloc(self, address: int, size: int, stream: int, phase: int, known: bool = True) -> None:
        """An ALLOC; address -1 where it failed."""
        if address >= 0:
            self.live[address] = (self.storages, size)
        self._add(Action.ALLOC, self.storages, size, stream, phase, address, known)
        self.storages += 1

    def free(self, address: int, phase: int) -> None:
        """The FREE of what lives at the address."""
        storage, size = self.live.pop(address)
        self._add(Action.FREE, storage, size, 0, phase, address, False)

    def empty(self, phase: int) -> None:
        """An EMPTY_CACHE."""
        self._add(Action.EMPTY_CACHE, -1, 0, 0, phase, 0, False)

    def _add(self, action: Action, storage: int, size: int, stream: int, phase: int, address: int, known: bool) -> None:
        self.rows.append((int(action), storage, size, stream, phase))
        self.address.append(address)
        self.known.append(known)


def trace_of_events(
    events: Sequence[Event],
    initial: Iterable[Segment],
    phases: tuple[str, ...],
    source: str,
    kind: str,
    settings: str = "",
    device_memory: int | None = None,
    torch: str | None = None,
) -> Trace:
    """The Trace of recorded events. A free takes effect where it completed.

    A run of segment_free that no failed allocation explains becomes an EMPTY_CACHE. Without a known device memory one stands for every run: where
    the allocator released its cache to try again, the addresses are the same. Raises InputError for an unknown action, a negative size, a free of
    what was never allocated, an address that is allocated twice.
    """
    rows = _Rows()
    given: list[int] = []
    reserved = 0  # bytes
    gaps: list[int] = []
    for segment in initial:
        reserved += segment.bytes
        given.append(segment.address)
        gaps += _rebuild(rows, segment)
    for gap in gaps:  # only now: a later segment's blocks would go into them
        rows.free(gap, 0)
    prefix = len(rows.rows)
    completes = any(event[0] == "free_completed" for event in events)
    released = False
    collects = "garbage_collection_threshold" in settings or "per_process_memory_fraction" in settings
    for index, (action, address, size, stream, phase) in enumerate(events):
        if size < 0:
            raise InputError(f"{source}: event {index}: {action} of {size} bytes; 0 and more is valid")
        if action == "alloc":
            if address in rows.live:
                raise InputError(f"{source}: event {index}: address {address} is allocated while it is in use")
            rows.alloc(address, size, stream, phase)
        elif action == "free_completed" or action == "free" or (action == "free_requested" and not completes):
            if address not in rows.live:
                raise InputError(f"{source}: event {index}: address {address} is freed while it is not allocated")
            rows.free(address, phase)
        elif action == "segment_alloc":
            given.append(address)
        elif action == "oom":
            rows.alloc(-1, size, stream, phase)
        elif action not in KNOWN:
            raise InputError(f"{source}: event {index}: {action!r} is not an action of the allocator; valid are {', '.join(KNOWN)}")
        releases = action == "segment_free" or action == "segment_unmap"
        if releases and not released and not (device_memory is not None and _serves(events, index, device_memory - reserved, collects)):
            rows.empty(phase)
        released = releases
        reserved += size * ((action in ("segment_alloc", "segment_map")) - releases)
    table = np.array(rows.rows, np.int64).reshape(-1, 5)
    n = len(table)
    tape = Tape(
        action=table[:, 0].astype(np.uint8),
        storage=table[:, 1].copy(),
        bytes=table[:, 2].copy(),
        stream=table[:, 3].copy(),
        phase=table[:, 4].astype(np.int32),
        operator=np.zeros(n, np.int32),
        layer=np.full(n, -1, np.int32),
        category=np.full(n, Category.UNATTRIBUTED, np.uint8),
        phases=phases,
        operators=("trace",),
    )
    return Trace(
        tape,
        source,
        kind,
        np.array(rows.address, np.int64),
        np.array(rows.known, bool),
        None,
        prefix,
        np.array(given, np.int64),
        settings,
        device_memory,
        torch,
    )


def _serves(events: Sequence[Event], index: int, free: int, collects: bool) -> bool:
    """Whether a run of releases serves an allocation that found too little free memory, or that collected garbage: the allocator did it by itself."""
    while index < len(events) and events[index][0] in ("segment_free", "segment_unmap", "free_completed"):
        index += 1
    if index == len(events):
        return False
    action, _, size, _, _ = events[index]
    return action == "oom" or (action in ("segment_alloc", "segment_map") and (collects or size > free))


def _rebuild(rows: _Rows, segment: Segment) -> list[int]:
    """Requests that make the segment and leave its blocks as they were: it is filled from front to back, and the gaps returned, to be freed.

    A gap of at most 1 MiB behind a live block of a large segment belongs to that block: the allocator does not split off so little.
    """
    pieces: list[tuple[int, int, bool]] = []
    at, end = segment.address, segment.address + segment.bytes
    live = sorted(segment.live)
    for place, (address, size) in enumerate(live):
        pieces += _gap(at, address - at, segment.small)
        following = live[place + 1][0] if place + 1 < len(live) else end
        block = max(UNIT, -(-size // UNIT) * UNIT)
        if not segment.small and following - address - block <= SMALL:
            block = following - address
        pieces.append((address, block, True))
        at = address + block
    pieces += _gap(at, end - at, segment.small)
    if not segment.small:  # the whole first: a first block alone could get a segment of another size
        rows.alloc(segment.address, segment.bytes, segment.stream, 0, known=False)
        rows.free(segment.address, 0)
    for address, block, _ in pieces:
        rows.alloc(address, block, segment.stream, 0, known=False)
    return [address for address, _, alive in pieces if not alive]


def _gap(address: int, size: int, small: bool) -> list[tuple[int, int, bool]]:
    step = SMALL if small else max(size, 1)
    return [(address + offset, min(step, size - offset), False) for offset in range(0, size, step)]
