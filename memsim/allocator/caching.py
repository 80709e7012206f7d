"""PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator.cpp), compiled: a request after the other, in its order of steps."""

from __future__ import annotations

import numpy as np
from numba import njit

from memsim.allocator.arena import (
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
    EXPANDABLE,
    GC_TARGET,
    IS_EXPANDABLE,
    LARGE_SEGMENT,
    MAX_SPLIT,
    META,
    MIN_LARGE,
    NEXT_BLOCK,
    NON_SPLIT,
    OOMS,
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
    TIE,
    UNIT,
    USED,
    USES,
)
from memsim.allocator.bits import leading_zeros, words
from memsim.allocator.blocks import complete, free, new_block, process_events, put_before, record_stream
from memsim.allocator.driver import CALL_WORDS, with_room
from memsim.allocator.expandable import prefer_fixed
from memsim.allocator.free_sets import first_fit, insert, remove, unlink
from memsim.allocator.ladder import obtain, release_cached
from memsim.tape import Action

ALLOC, FREE, RECORD_STREAM, EMPTY_CACHE = int(Action.ALLOC), int(Action.FREE), int(Action.RECORD_STREAM), int(Action.EMPTY_CACHE)
MAX_BYTES = 1 << 60  # no request and no segment is so large


@njit(cache=True)
def rounded(heap, asked):
    """The size of the block that a request of so many bytes looks for."""
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
    """The size of a segment for a block of `size` bytes."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return heap[LARGE_SEGMENT]
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE


@njit(cache=True)
def _take_special(heap, pool, slot, size):
    """As taking the best fit at a slot, where the setting says that not every block will do; 0 if this one does not."""
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
    """The first `size` bytes of a block that is in no set, as a block; the rest is free again."""
    meta = heap[block + META]
    head = new_block(heap, heap[block + ADDRESS], size, heap[block + TIE], meta)
    put_before(heap, head, block)
    heap[block + ADDRESS] += size
    heap[block + SIZE] -= size
    insert(heap, pool, block)
    if meta & IS_EXPANDABLE:
        heap[head + heap[COLD] + BASE] = heap[block + heap[COLD] + BASE]
    return head


@njit(cache=True)
def _rank(handles, handle):
    low, high = 0, len(handles)
    while low < high:
        middle = (low + high) >> 1
        if handles[middle] < handle:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def replay(arena, addresses, action, storage, storages, nbytes, stream, ranks, stop_at_oom):
    """Answers a Tape.

    arena: with its settings. addresses: for the driver to hand out first. action [n] uint8, storage, nbytes [n] int64, stream [n] uint64;
    storages: their number. ranks: the streams' handles in PyTorch's order.
    Returns 9 rows of n (address, block, requested, allocated, active, reserved, segments, retries, ooms), driver calls, CALL_WORDS each
    (as many as the arena's CALLS), events processed, and of the first failure (event, bytes tried, device free, allocated, reserved, whether it
    was rejected), its event -1 if there was none.
    """
    n = len(action)
    rows = np.zeros(9 * n, np.int64)
    heap, given, out = words(arena), words(addresses), words(rows)
    log = np.empty(64 * CALL_WORDS, np.int64)
    failure = np.full(6, -1, np.int64)
    block_of = np.zeros(storages + 1, np.int64)  # at 0 what no storage has
    special = heap[EXPANDABLE] != 0 or heap[MAX_SPLIT] < MAX_BYTES
    spare_large = UNIT if heap[EXPANDABLE] else SMALL_SIZE + UNIT  # the least remainder that is split off
    most_split = MAX_BYTES if heap[EXPANDABLE] else heap[MAX_SPLIT]
    first_block = heap[NEXT_BLOCK]
    rank = 0
    for e in range(n):
        kind = action[e]
        if kind == ALLOC:
            asked = nbytes[e]
            if asked > 0:
                if heap[PENDING]:
                    process_events(heap, False)
                if len(ranks) > 1:
                    rank = _rank(ranks, stream[e])
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
                    log = with_room(log, heap[CALLS], 2 * (heap[NEXT_BLOCK] - first_block) // BLOCK_WORDS + 16)
                    segment = segment_size(heap, size)
                    block = obtain(heap, words(log), given, e, pool, size, segment)
                    if block == 0:
                        heap[OOMS] += 1 - heap[REJECTED]
                        out[e] = -1
                        if failure[0] < 0:
                            failure[0] = e
                            failure[1] = segment
                            failure[2] = heap[CAPACITY] - heap[USED]
                            failure[3] = heap[ALLOCATED]
                            failure[4] = heap[RESERVED]
                            failure[5] = heap[REJECTED]
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
                    block_of[storage[e] + 1] = block
                    out[e] = heap[block + ADDRESS]
                    out[n + e] = held
        elif kind == FREE:
            block = block_of[storage[e] + 1]
            if block != 0:
                block_of[storage[e] + 1] = 0
                out[e] = heap[block + ADDRESS]
                out[n + e] = heap[block + SIZE]
                free(heap, block)
        elif kind == RECORD_STREAM:
            block = block_of[storage[e] + 1]
            if block != 0:
                record_stream(heap, block, _rank(ranks, stream[e]))
        elif kind == EMPTY_CACHE:
            log = with_room(log, heap[CALLS], 2 * (heap[NEXT_BLOCK] - first_block) // BLOCK_WORDS + 16)
            release_cached(heap, words(log), e)
        else:
            complete(heap, _rank(ranks, stream[e]))
        out[2 * n + e] = heap[REQUESTED]
        out[3 * n + e] = heap[ALLOCATED]
        out[4 * n + e] = heap[ACTIVE]
        out[5 * n + e] = heap[RESERVED]
        out[6 * n + e] = heap[SEGMENTS]
        out[7 * n + e] = heap[RETRIES]
        out[8 * n + e] = heap[OOMS]
        if failure[0] >= 0 and stop_at_oom:
            return rows, log, e + 1, failure
    return rows, log, n, failure
