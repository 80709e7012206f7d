"""Allocator events as PyTorch records them (alloc, free_completed, segment_alloc …) → Tape and recorded addresses."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.tape import Action, Category, Tape
from memsim.traces.columns import MOST_ADDRESS, MOST_SIZE, check_range
from memsim.traces.frames import Stacks, named
from memsim.traces.rebuild import SMALL_SEGMENT, Rebuilt, Segment, rebuild
from memsim.traces.recorder import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    Recording,
)
from memsim.traces.trace import Trace

Ints = NDArray[np.int64]
Placed = tuple[Ints, Ints, NDArray[np.bool_], Ints]
BEFORE = ("before",)  # the phase of what rebuilds the first state
PLACES = 4  # rows that one event may become
MOST_STREAMS = 1 << 12  # that allocate
MOST_WAITING = 1 << 16  # frees that wait at one time
MOST_MOVED = 2.0**62  # bytes that the driver gives and takes: sums stay within 64 bits


@dataclass(frozen=True, eq=False)
class _Lives:
    """The storages of a recording, including those live at its start."""

    storage: Ints  # [n] storage of the block that an event allocates or frees, -1 for other events
    immediate: Ints  # events that free a block at once
    deferred: Ints  # events that request a free which happens later …
    completed: Ints  # … at these; n where the recording ends before


def trace_of_events(
    events: Recording,
    initial: Iterable[Segment],
    source: str,
    kind: str,
    settings: str = "",
    device_memory: int | None = None,
    torch: str | None = None,
    stacks: Stacks | None = None,
) -> Trace:
    """Returns the Trace of recorded events, which begins with the requests that rebuild the `initial` segments.

    A free that completes at once is a FREE. One that completes later waits for an event on another stream, which the
    recording does not name: it is the RECORD_STREAM of a stream of its own, and the COMPLETE of that. A run of
    segment_free that no failed allocation explains becomes an EMPTY_CACHE. Without a known device memory one stands for
    every run: where the allocator released its cache to try again, the addresses are the same. `stacks` name the
    requests. Raises InputError for a negative size, a free of what was never allocated, an address that is allocated
    twice.
    """
    _check(events, source)
    try:
        start = rebuild(initial)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    lives = _lives(events, start, source)
    try:
        table, address, known, origin = _rows(events, lives, start, _emptied(events, start, settings, device_memory))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
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
        phases=(*events.phases, *(BEFORE if start.rows else ())),
        operators=("",),
    )
    given = np.array([*start.given, *_given(events, start).tolist()], np.int64)
    trace = Trace(tape, source, kind, address, known, None, len(start.rows), given, settings, device_memory, torch)
    return trace if stacks is None else named(trace, stacks, origin)


def _check(events: Recording, source: str) -> None:
    """Raises InputError for sizes that no device has, and for more streams than are followed."""
    check_range(events.bytes, MOST_SIZE, f"{source}: event", "bytes:")
    check_range(events.address, MOST_ADDRESS, f"{source}: event", "address")
    driver = (events.action >= SEGMENT_ALLOC) & (events.action <= SEGMENT_UNMAP)
    held = float(events.bytes[driver].astype(np.float64).sum())
    if held > MOST_MOVED:
        raise InputError(f"{source}: its segments take and give {held:.3g} bytes in all, which no device does")
    check_streams(events.stream[(events.action == ALLOC) | (events.action == OOM)], source)


def check_streams(streams: Ints, source: str) -> None:
    """Raises InputError where allocations are on more streams than the allocator has room for."""
    count = len(np.unique(streams))
    if count > MOST_STREAMS:
        raise InputError(f"{source}: allocates on {count} streams; up to {MOST_STREAMS} are followed")


def memory_of(events: Recording, reserved: int = 0) -> int | None:
    """Bytes of the device, where an out of memory gives them: the free and the reserved memory then. `reserved` is the
    reserved memory at the start. None without an out of memory.
    """
    failed = np.flatnonzero(events.action == OOM)
    if not len(failed):
        return None
    first = int(failed[0])
    return reserved + int(_growth(events)[:first].sum() + events.address[first])


def _growth(events: Recording) -> Ints:
    """[n] Bytes that each event adds to the reserved memory."""
    takes = (events.action == SEGMENT_ALLOC) | (events.action == SEGMENT_MAP)
    gives = (events.action == SEGMENT_FREE) | (events.action == SEGMENT_UNMAP)
    growth: Ints = events.bytes * (takes.astype(np.int64) - gives)
    return growth


def _lives(events: Recording, start: Rebuilt, source: str) -> _Lives:
    """Returns the storage of each event, and the frees that complete later than they are requested."""
    action, n = events.action, len(events)
    at = np.flatnonzero(action <= FREE_COMPLETED)
    places = np.concatenate([np.full(len(start.live), -1, np.int64), at])
    kinds = np.concatenate([np.full(len(start.live), ALLOC, np.int64), action[at]])
    where = np.concatenate([np.fromiter(start.live, np.int64, len(start.live)), events.address[at]])
    born = (action == ALLOC) | (action == OOM)
    number = start.storages - 1 + np.cumsum(born)
    numbers = np.concatenate([np.array([storage for storage, _ in start.live.values()], np.int64), number[at]])
    order = np.lexsort((np.arange(len(where)), where))  # the life of each address, one after the other
    kind, place = kinds[order], places[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = where[order][1:] != where[order][:-1]
    before = np.where(fresh, FREE_COMPLETED, np.concatenate([[FREE_COMPLETED], kind[:-1]])) if len(order) else kind
    completes = bool((action == FREE_COMPLETED).any())
    last = {FREE_COMPLETED} if completes else {FREE_COMPLETED, FREE_REQUESTED}
    twice = (kind == ALLOC) & ~np.isin(before, list(last))
    lost = ((kind == FREE_REQUESTED) & (before != ALLOC)) | ((kind == FREE_COMPLETED) & (before == FREE_COMPLETED))
    wrong = np.flatnonzero(twice | lost)
    if len(wrong):
        first = int(wrong[np.argmin(place[wrong])])
        reason = "is allocated while it is in use" if twice[first] else "is freed while it is not allocated"
        raise InputError(f"{source}: event {int(place[first])}: address {int(where[order][first])} {reason}")
    mother = np.maximum.accumulate(np.where(kind == ALLOC, np.arange(len(order)), -1)) if len(order) else order
    storage = np.full(n, -1, np.int64)
    real = place >= 0
    storage[place[real]] = numbers[order][mother][real]
    storage[action == OOM] = number[action == OOM]
    asks = np.flatnonzero(kind == FREE_REQUESTED)
    follows = np.append(kind, ALLOC)[asks + 1] == FREE_COMPLETED
    done = np.where(follows, np.append(place, n)[asks + 1], n)
    late = (done != place[asks] + 1) if completes else np.zeros(len(asks), bool)
    unasked = (kind == FREE_COMPLETED) & (before == ALLOC)
    by_event = np.argsort(place[asks][late])
    return _Lives(
        storage, np.concatenate([place[asks][~late], place[unasked]]), place[asks][late][by_event], done[late][by_event]
    )


def _streams(lives: _Lives) -> Ints:
    """Returns a stream for each deferred free, used by no other while it waits. The streams are handles that PyTorch
    never gives.
    """
    free: list[int] = []
    waiting: list[tuple[int, int]] = []  # completion, stream
    made = 0
    chosen = []
    for event, done in zip(lives.deferred.tolist(), lives.completed.tolist(), strict=True):
        while waiting and waiting[0][0] < event:
            heapq.heappush(free, heapq.heappop(waiting)[1])
        if not free:
            made += 1
            if made > MOST_WAITING:
                raise InputError(f"event {event}: more than {MOST_WAITING} frees wait, which no recording has")
            free.append(made)
        stream = heapq.heappop(free)
        heapq.heappush(waiting, (done, stream))
        chosen.append(-1 - stream)
    return np.array(chosen, np.int64)


def _rows(events: Recording, lives: _Lives, start: Rebuilt, emptied: Ints) -> Placed:
    """(rows of action, storage, bytes, stream, phase; recorded addresses; whether they are recorded; the event of
    each), those of `start` first, whose event is -1.
    """
    n = len(events)
    born = np.flatnonzero((events.action == ALLOC) | (events.action == OOM))
    streams = _streams(lives)
    ends = np.flatnonzero(lives.completed < n)

    def rows(action: Action, at: Ints, place: int, storage: Ints | int, size: Ints | int, stream: Ints | int) -> Ints:
        made = np.zeros((len(at), 7), np.int64)
        made[:, 0], made[:, 1], made[:, 2], made[:, 3], made[:, 4] = (
            PLACES * at + place,
            int(action),
            storage,
            size,
            stream,
        )
        made[:, 5] = events.phase[at]
        return made

    asked = np.full(start.storages + len(born), 0, np.int64)
    for number, size in start.live.values():
        asked[number] = size
    asked[lives.storage[born]] = events.bytes[born]

    def frees(at: Ints, place: int) -> Ints:
        return rows(Action.FREE, at, place, lives.storage[at], asked[lives.storage[at]], 0)

    allocs = rows(Action.ALLOC, born, 0, lives.storage[born], events.bytes[born], events.stream[born])
    allocs[:, 6] = np.where(events.action[born] == OOM, -1, events.address[born])
    table = np.concatenate(
        [
            allocs,
            frees(lives.immediate, 0),
            rows(Action.RECORD_STREAM, lives.deferred, 0, lives.storage[lives.deferred], 0, streams),
            frees(lives.deferred, 1),
            rows(Action.COMPLETE, lives.completed[ends], 2, -1, 0, streams[ends]),
            rows(Action.EMPTY_CACHE, emptied, 3, -1, 0, 0),
        ]
    )
    table = table[np.argsort(table[:, 0], kind="stable")]
    prefix = np.array(start.rows, np.int64).reshape(-1, 4)
    first = np.concatenate([prefix, np.full((len(prefix), 1), len(events.phases))], axis=1)
    address = np.concatenate([np.zeros(len(prefix), np.int64), table[:, 6]])
    known = np.concatenate([np.zeros(len(prefix), bool), table[:, 1] == int(Action.ALLOC)])
    origin = np.concatenate([np.full(len(prefix), -1, np.int64), table[:, 0] // PLACES])
    return np.concatenate([first, table[:, 1:6]]), address, known, origin


def _emptied(events: Recording, start: Rebuilt, settings: str, device_memory: int | None) -> Ints:
    """Returns the first event of each run of releases that the allocator did not make itself in order to serve an
    allocation.
    """
    action = events.action
    gives = (action == SEGMENT_FREE) | (action == SEGMENT_UNMAP)
    begins = np.flatnonzero(gives & ~np.concatenate([[False], gives[:-1]]))
    if device_memory is None or not len(begins):
        return begins
    collects = "garbage_collection_threshold" in settings or "per_process_memory_fraction" in settings
    growth = _growth(events)
    reserved = start.reserved + np.cumsum(growth) - growth  # before the event
    others = np.flatnonzero(~gives & (action != FREE_COMPLETED))
    after = np.searchsorted(others, begins)
    following = np.append(others, len(events))[after]
    found = following < len(events)
    next_action, size = np.append(action, 255)[following], np.append(events.bytes, 0)[following]
    taken = (next_action == SEGMENT_ALLOC) | (next_action == SEGMENT_MAP)
    serves = found & ((next_action == OOM) | (taken & (collects | (size > device_memory - reserved[begins]))))
    emptied: Ints = begins[~serves]
    return emptied


def _given(events: Recording, start: Rebuilt) -> Ints:
    """Returns addresses that the driver gave: of segments, and of reservations for expandable memory. A reservation
    begins with the first page of a pool that has none.

    A reservation is returned with its last page.
    """
    calls = np.flatnonzero(
        (events.action >= SEGMENT_ALLOC) & (events.action <= SEGMENT_UNMAP) & (events.action != SEGMENT_FREE)
    )
    given: list[int] = []
    held = dict(start.expandable)  # first address of each reservation: its pool
    pools = Counter(held.values())
    mapped = dict(start.mapped)  # bytes by reservation
    bases = sorted(held)
    columns = (events.action[calls], events.address[calls], events.bytes[calls], events.stream[calls])
    for action, address, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if action == SEGMENT_ALLOC:
            given.append(address)
            continue
        base = bases[max(bisect_right(bases, address) - 1, 0)] if bases else address
        if action == SEGMENT_UNMAP:
            mapped[base] = mapped.get(base, 0) - size
            if mapped[base] <= 0 and base in held:
                pools[held.pop(base)] -= 1
                del bases[bisect_left(bases, base)]
            continue
        pool = stream, size == SMALL_SEGMENT
        if not pools[pool]:
            base = address
            given.append(address)
            if base in held:  # as another pool's
                pools[held[base]] -= 1
            else:
                insort(bases, base)
            held[base] = pool
            pools[pool] += 1
        mapped[base] = mapped.get(base, 0) + size
    return np.array(given, np.int64)
