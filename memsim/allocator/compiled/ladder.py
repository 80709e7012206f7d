"""The allocator's steps when no free block fits: garbage collection, the driver, the return of cached memory, and
another try.
"""

from __future__ import annotations

import numpy as np

from memsim.allocator.compiled.arena import (
    ADDRESS,
    AGE,
    CAPACITY,
    COLD,
    EXPANDABLE,
    GC_TARGET,
    IS_EXPANDABLE,
    LIMIT,
    MAX_SPLIT,
    META,
    NEVER,
    NEXT,
    ORDER,
    PAGE,
    POOL_WORDS,
    POOLS,
    PREV,
    REJECT,
    REJECTED,
    RESERVED,
    RETRIES,
    SEARCHES,
    SEGMENTS,
    SIZE,
    STREAMS,
    USED,
)
from memsim.allocator.compiled.blocks import new_block, order_of_segment, process_events, recycle
from memsim.allocator.compiled.driver import allocate_segment, free_segment
from memsim.allocator.compiled.expandable import grow, unmap
from memsim.allocator.compiled.free_sets import first_fit, following, remove
from memsim.allocator.compiled.jit import njit


@njit(cache=True)
def _is_whole_segment(heap, block):
    return heap[block + META] & IS_EXPANDABLE == 0 and heap[block + PREV] == 0 and heap[block + NEXT] == 0


@njit(cache=True)
def _release(heap, calls, event, pool, block):
    remove(heap, pool, block)
    heap[SEGMENTS] -= 1
    free_segment(heap, calls, event, heap[block + ADDRESS], heap[block + SIZE])
    recycle(heap, block)


@njit(cache=True)
def _collect_garbage(heap, calls, event):
    """Releases whole free segments of the large pools that were not used for long. Each pass releases those not younger
    than the mean age.
    """
    goal = heap[RESERVED] - heap[GC_TARGET]
    clock = heap[SEARCHES + 1]
    collected, count, ages = 0, -1, 0
    while collected < goal and count != 0:
        counting = count < 0  # the first pass only counts
        if counting:
            count = 0
        mean = 0.0 if counting else ages / count
        freed = False
        for stream in range(heap[STREAMS]):
            pool = heap[POOLS] + (2 * stream + 1) * POOL_WORDS
            block = following(heap, pool, 0, 0)
            while block != 0:
                size, order, age = heap[block + SIZE], heap[block + ORDER], clock - heap[block + heap[COLD] + AGE]
                whole = heap[block + PREV] == 0 and heap[block + NEXT] == 0
                if whole and counting:
                    ages += age
                    count += 1
                elif whole and age >= mean and heap[block + META] & IS_EXPANDABLE == 0:
                    freed = True
                    collected += size
                    ages -= age
                    count -= 1
                    _release(heap, calls, event, pool, block)
                block = following(heap, pool, size, order)
        if not counting and not freed:
            return


@njit(cache=True)
def _release_oversize(heap, calls, event, pool, size):
    """With max_split_size, releases one free block that is large enough, or the largest ones until their sum is.
    Returns True if that is enough.
    """
    most = heap[MAX_SPLIT]
    if most == NEVER:
        return False
    wanted = max(size, most)
    slot = first_fit(heap, pool, wanted)
    if slot != 0 and heap[heap[slot] + META] & IS_EXPANDABLE == 0:
        _release(heap, calls, event, pool, heap[slot])
        return True
    count = 0
    block = following(heap, pool, most, -1)
    while block != 0 and heap[block + SIZE] < wanted:
        count += 1
        block = following(heap, pool, heap[block + SIZE], heap[block + ORDER])
    found = np.empty(count, np.int64)
    block = following(heap, pool, most, -1)
    for at in range(count):
        found[at] = block
        block = following(heap, pool, heap[block + SIZE], heap[block + ORDER])
    released = 0
    while released < wanted and count > 0:
        count -= 1
        block = found[count]
        if heap[block + META] & IS_EXPANDABLE == 0:
            released += heap[block + SIZE]
            _release(heap, calls, event, pool, block)
    return released >= wanted


@njit(cache=True)
def release_cached(heap, calls, event):
    """Waits for all events, and returns to the driver all memory that can be returned. This is empty_cache(), and the
    last step but one before a failure.
    """
    process_events(heap, True)
    for large in (1, 0):
        for mapped in (False, True):  # segments first, then the pages of expandable ones
            for stream in range(heap[STREAMS]):
                pool = heap[POOLS] + (2 * stream + large) * POOL_WORDS
                block = following(heap, pool, 0, 0)
                while block != 0:
                    size, order = heap[block + SIZE], heap[block + ORDER]
                    if mapped:
                        if heap[block + META] & IS_EXPANDABLE:
                            unmap(heap, calls, event, pool, block)
                    elif _is_whole_segment(heap, block):
                        _release(heap, calls, event, pool, block)
                    block = following(heap, pool, size, order)


@njit(cache=True)
def _from_driver(heap, calls, given, event, pool, size, segment):
    """Returns a free block, in no set, of a new segment or of newly mapped pages; 0 if that fails."""
    if heap[RESERVED] + segment > heap[LIMIT]:
        return 0
    if heap[RESERVED] + segment > heap[REJECT]:
        heap[REJECTED] = 1
        return 0
    if heap[EXPANDABLE]:
        return grow(heap, calls, given, event, pool, size)
    address = allocate_segment(heap, calls, given, event, segment)
    if address == 0:
        return 0
    heap[SEGMENTS] += 1
    return new_block(heap, address, segment, order_of_segment(heap, address), pool << 3)


@njit(cache=True)
def has_margin(heap, segment):
    """True if there is certainly room for a segment of `segment` bytes, in whole pages, below every limit."""
    wanted = segment + 2 * PAGE
    within = heap[RESERVED] + wanted <= min(heap[LIMIT], heap[REJECT])
    return within and heap[USED] + wanted <= heap[CAPACITY]


@njit(cache=True)
def obtain(heap, calls, given, event, pool, size, segment):
    """Returns a block of at least `size` bytes, in no set, when no free one fits; 0 if there is no memory. segment:
    bytes of a segment for it.
    """
    heap[REJECTED] = 0
    if heap[GC_TARGET] >= 0:
        _collect_garbage(heap, calls, event)
    for attempt in range(3):
        if attempt == 1 and not _release_oversize(heap, calls, event, pool, size):
            continue
        if attempt == 2:
            release_cached(heap, calls, event)
            heap[RETRIES] += 1
        block = _from_driver(heap, calls, given, event, pool, size, segment)
        if block != 0 or heap[REJECTED]:
            return block
    return 0
