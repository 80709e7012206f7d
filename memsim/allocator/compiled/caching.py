"""PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator.cpp), compiled. It serves one request after the
other, with the original's order of steps.
"""

from __future__ import annotations

from memsim.allocator.compiled.arena import (
    ACTIVE,
    ADDRESS,
    ALLOCATED,
    ASKED,
    BASE,
    BLOCK_WORDS,
    BUSY,
    CALLS,
    CAPACITY,
    COLD,
    DEFERS,
    EXPANDABLE,
    FAILED,
    FIRST_BLOCK,
    GC_TARGET,
    HALTS,
    IS_EXPANDABLE,
    LARGE_SEGMENT,
    MAX_SPLIT,
    META,
    MIN_LARGE,
    NEXT_BLOCK,
    NON_SPLIT,
    OOMS,
    ORDER,
    PENDING,
    POOL_WORDS,
    POOLS,
    REJECTED,
    REQUESTED,
    RESERVED,
    RETRIES,
    ROUND_LARGE,
    ROUNDING,
    SEARCHES,
    SEGMENTS,
    SIZE,
    SMALL_SEGMENT,
    SMALL_SIZE,
    UNIT,
    USED,
    USES,
)
from memsim.allocator.compiled.bits import items, leading_zeros
from memsim.allocator.compiled.blocks import complete, free, move, new_block, process_events, put_before, record_stream
from memsim.allocator.compiled.driver import CALL_WORDS
from memsim.allocator.compiled.expandable import prefer_fixed
from memsim.allocator.compiled.free_sets import first_fit, insert, remove, unlink
from memsim.allocator.compiled.jit import njit
from memsim.allocator.compiled.ladder import has_margin, obtain, release_cached
from memsim.tape import Action

ALLOC, FREE, RECORD_STREAM, EMPTY_CACHE = (
    int(Action.ALLOC),
    int(Action.FREE),
    int(Action.RECORD_STREAM),
    int(Action.EMPTY_CACHE),
)
MAX_BYTES = 1 << 60  # every request and every segment is smaller


@njit(cache=True)
def rounded(heap, asked):
    """Bytes of the block that a request of `asked` bytes looks for."""
    if asked < UNIT:
        return UNIT
    log = 63 - leading_zeros(asked)
    divisions = heap[ROUNDING + min(max(log - 20, 0), 15)]
    if divisions > 1 and asked > UNIT * divisions:
        power = 1 << log
        step = power >> (63 - leading_zeros(divisions))
        return power if asked == power else (asked + step - 1) & -step
    return (asked + UNIT - 1) & -UNIT


@njit(cache=True)
def segment_size(heap, size):
    """Bytes of a segment for a block of `size` bytes."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return heap[LARGE_SEGMENT]
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE


@njit(cache=True)
def _take_special(heap, pool, slot, size):
    """Takes the best fit at a slot, where a setting rules some blocks out. Returns 0 if it rules this block out."""
    block = heap[slot]
    if heap[block + META] & IS_EXPANDABLE:
        block = prefer_fixed(heap, pool, block)
    if size < heap[MAX_SPLIT] and heap[block + SIZE] >= heap[MAX_SPLIT]:
        return 0
    if size >= heap[MAX_SPLIT] and heap[block + SIZE] >= size + heap[NON_SPLIT]:
        return 0
    remove(heap, pool, block)
    return block


@njit(cache=True)
def _split(heap, pool, block, size):
    """Makes the first `size` bytes of a block that is in no set a block of their own, and returns it. The rest is free
    again.
    """
    meta = heap[block + META]
    head = new_block(heap, heap[block + ADDRESS], size, heap[block + ORDER], meta)
    put_before(heap, head, block)
    move(heap, block, size)
    heap[block + SIZE] -= size
    insert(heap, pool, block)
    if meta & IS_EXPANDABLE:
        heap[head + heap[COLD] + BASE] = heap[block + heap[COLD] + BASE]
    return head


@njit(cache=True)
def _rank(handles, count, handle):
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if handles[middle] < handle:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _fail(heap, event, segment):
    """Counts a request that failed, and keeps the first."""
    heap[OOMS] += 1 - heap[REJECTED]
    if heap[FAILED] == 0:
        heap[FAILED] = event + 1
        heap[FAILED + 1] = segment
        heap[FAILED + 2] = heap[CAPACITY] - heap[USED]
        heap[FAILED + 3] = heap[ALLOCATED]
        heap[FAILED + 4] = heap[RESERVED]
        heap[FAILED + 5] = heap[REJECTED]


@njit(cache=True)
def _has_room(heap, first_block, room):
    """True if an event may release everything and allocate without writing more driver calls than the
    log has room for.
    """
    return heap[CALLS] + 2 * (heap[NEXT_BLOCK] - first_block) // BLOCK_WORDS + 16 <= room


@njit(cache=True)
def replay(
    arena, addresses, action, storage, nbytes, stream, ranks, block_of, rows, rare, log, start, stop, stop_at_oom
):
    """Answers a Tape from event `start` to `stop`. Returns the event that it would go on with, which is `stop`, or an
    earlier one:

    - after a failure, if `stop_at_oom`;
    - where the log is too short;
    - where the device may have no room and the arena's HALTS is 1, which it then clears.

    arena: settings and state. addresses: for the driver to hand out first. action [n] uint8, storage, nbytes [n] int64,
    stream [n] uint64.
    ranks: the streams' handles in PyTorch's order, uint64. block_of [storages + 1]: zeros at first.
    rows: out, 6 of n: address, block, requested, allocated, reserved, segments.
    rare: out, 3 of n, zeros at first: active, retries and ooms. Active stays zero where no free waits for a stream, for
    there it equals allocated.
    log: out, driver calls, CALL_WORDS each; the arena's CALLS is their number.
    """
    n, room, streams = len(action), len(log) // CALL_WORDS, len(ranks)
    heap, given, calls, out, seldom = items(arena), items(addresses), items(log), items(rows), items(rare)
    handles = items(ranks)
    kinds, storages, sizes, on, blocks = items(action), items(storage), items(nbytes), items(stream), items(block_of)
    first_block = heap[FIRST_BLOCK]
    special = heap[EXPANDABLE] != 0 or heap[MAX_SPLIT] < MAX_BYTES
    spare_large = UNIT if heap[EXPANDABLE] else SMALL_SIZE + UNIT  # the least remainder that is split off
    most_split = MAX_BYTES if heap[EXPANDABLE] else heap[MAX_SPLIT]
    defers = heap[DEFERS] != 0
    rank = 0
    for e in range(start, stop):
        kind = kinds[e]
        at, held = 0, 0
        if kind == ALLOC:
            asked = sizes[e]
            if asked > 0:
                if heap[PENDING]:
                    process_events(heap, False)
                if streams > 1:
                    rank = _rank(handles, streams, on[e])
                size = rounded(heap, asked)
                large = 1 if size > SMALL_SIZE else 0
                pool = heap[POOLS] + (2 * rank + large) * POOL_WORDS
                if heap[GC_TARGET] >= 0:
                    heap[SEARCHES + large] += 1
                slot = first_fit(heap, pool, size)
                block = 0
                if slot != 0:
                    block = _take_special(heap, pool, slot, size) if special else unlink(heap, pool, slot)
                if block == 0:
                    if not _has_room(heap, first_block, room):
                        if heap[GC_TARGET] >= 0:
                            heap[SEARCHES + large] -= 1  # the event will ask again
                        return e
                    segment = segment_size(heap, size)
                    if heap[HALTS] and not has_margin(heap, segment):
                        heap[HALTS] = 0
                        return e
                    block = obtain(heap, calls, given, e, pool, size, segment)
                    if block == 0:
                        _fail(heap, e, segment)
                        at = -1
                if block != 0:
                    rest = heap[block + SIZE] - size
                    if rest >= UNIT and (large == 0 or (rest >= spare_large and size < most_split)):
                        block = _split(heap, pool, block, size)
                    heap[block + META] |= BUSY
                    heap[block + ASKED] = asked
                    heap[block + USES] = 0
                    held = heap[block + SIZE]
                    heap[REQUESTED] += asked
                    heap[ALLOCATED] += held
                    heap[ACTIVE] += held
                    blocks[storages[e] + 1] = block
                    at = heap[block + ADDRESS]
        elif kind == FREE:
            block = blocks[storages[e] + 1]
            if block != 0:
                blocks[storages[e] + 1] = 0
                at, held = heap[block + ADDRESS], heap[block + SIZE]
                free(heap, block)
        elif kind == RECORD_STREAM:
            block = blocks[storages[e] + 1]
            if block != 0:
                record_stream(heap, block, _rank(handles, streams, on[e]))
        elif kind == EMPTY_CACHE:
            if not _has_room(heap, first_block, room):
                return e
            release_cached(heap, calls, e)
        else:
            complete(heap, _rank(handles, streams, on[e]))
        out[e] = at
        out[n + e] = held
        out[2 * n + e] = heap[REQUESTED]
        out[3 * n + e] = heap[ALLOCATED]
        out[4 * n + e] = heap[RESERVED]
        out[5 * n + e] = heap[SEGMENTS]
        if defers:
            seldom[e] = heap[ACTIVE]
        if heap[RETRIES] + heap[OOMS] != 0:
            seldom[n + e] = heap[RETRIES]
            seldom[2 * n + e] = heap[OOMS]
        if stop_at_oom and heap[FAILED] != 0:
            return e + 1
    return stop
