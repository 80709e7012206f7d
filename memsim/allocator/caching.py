"""PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator.cpp) with default settings on the default stream, compiled.

Blocks are rows of arrays; the free blocks of each pool are kept in a sorted array of keys (size, registration number of the segment, address),
which is the order of PyTorch ≥ 2.13. Best fit is the first key that is not smaller than the request's.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SMALL, LARGE = 0, 1
UNIT = 512
SMALL_SIZE = 1 << 20
SMALL_BUFFER = 2 << 20
LARGE_BUFFER = 20 << 20
MIN_LARGE = 10 << 20
PAGE = 2 << 20
FIRST_ADDRESS = 0x700000000000
SEGMENT_ALLOC, SEGMENT_FREE = 0, 1


@njit(cache=True)
def _find(keys, count, size, number, address):
    """The first position in a pool's sorted keys [4, capacity] whose key is not smaller."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        s = keys[0, middle]
        if s < size:
            low = middle + 1
        elif s > size:
            high = middle
        else:
            r = keys[1, middle]
            if r < number or (r == number and keys[2, middle] < address):
                low = middle + 1
            else:
                high = middle
    return low


@njit(cache=True)
def _insert(keys, counts, pool, size, number, address, block):
    rows = keys[pool]
    n = counts[pool]
    at = _find(rows, n, size, number, address)
    for i in range(n, at, -1):
        rows[0, i] = rows[0, i - 1]
        rows[1, i] = rows[1, i - 1]
        rows[2, i] = rows[2, i - 1]
        rows[3, i] = rows[3, i - 1]
    rows[0, at] = size
    rows[1, at] = number
    rows[2, at] = address
    rows[3, at] = block
    counts[pool] = n + 1


@njit(cache=True)
def _erase(keys, counts, pool, at):
    rows = keys[pool]
    n = counts[pool] - 1
    for i in range(at, n):
        rows[0, i] = rows[0, i + 1]
        rows[1, i] = rows[1, i + 1]
        rows[2, i] = rows[2, i + 1]
        rows[3, i] = rows[3, i + 1]
    counts[pool] = n


@njit(cache=True)
def replay(action, storage, nbytes, storages, device_memory, stop_at_oom):
    """Answers a Tape's ALLOCs and FREEs.

    action [n] uint8, storage [n], nbytes [n] int64; device_memory in bytes. Returns rows [9, n] (address, block, requested, allocated,
    active, reserved, segments, retries, ooms), driver calls [4, m] (event, action, address, bytes), events processed, and of the first
    failure (event, bytes tried, device free, allocated, reserved).
    """
    n = len(action)
    out = np.zeros((9, n), np.int64)
    driver = np.empty((4, 2 * n + 16), np.int64)
    calls = 0
    failure = np.full(5, -1, np.int64)
    capacity = n + 16
    address = np.empty(capacity, np.int64)
    size = np.empty(capacity, np.int64)
    before = np.empty(capacity, np.int64)
    after = np.empty(capacity, np.int64)
    number = np.empty(capacity, np.int64)
    pool_of = np.empty(capacity, np.uint8)
    used = np.zeros(capacity, np.uint8)
    spare = np.empty(capacity, np.int64)
    spares = 0
    blocks = 0
    keys = np.empty((2, 4, capacity), np.int64)
    counts = np.zeros(2, np.int64)
    block_of = np.full(storages + 1, -1, np.int64)
    bytes_of = np.zeros(storages + 1, np.int64)
    next_address = FIRST_ADDRESS
    registered = 0
    requested = allocated = reserved = segments = retries = ooms = 0

    for e in range(n):
        kind = action[e]
        if kind == 0:
            asked = nbytes[e]
            rounded = UNIT if asked < UNIT else (asked + UNIT - 1) // UNIT * UNIT
            pool = SMALL if rounded <= SMALL_SIZE else LARGE
            rows = keys[pool]
            at = _find(rows, counts[pool], rounded, -1, 0)
            block = -1
            if at < counts[pool]:
                block = rows[3, at]
                _erase(keys, counts, pool, at)
            else:
                if pool == SMALL:
                    segment = SMALL_BUFFER
                elif rounded < MIN_LARGE:
                    segment = LARGE_BUFFER
                else:
                    segment = (rounded + PAGE - 1) // PAGE * PAGE
                if reserved + segment > device_memory:
                    retries += 1
                    for which in (LARGE, SMALL):
                        kept = 0
                        cached = keys[which]
                        for i in range(counts[which]):
                            b = cached[3, i]
                            if before[b] == -1 and after[b] == -1:
                                driver[0, calls] = e
                                driver[1, calls] = SEGMENT_FREE
                                driver[2, calls] = address[b]
                                driver[3, calls] = size[b]
                                calls += 1
                                reserved -= size[b]
                                segments -= 1
                                spare[spares] = b
                                spares += 1
                            else:
                                for row in range(4):
                                    cached[row, kept] = cached[row, i]
                                kept += 1
                        counts[which] = kept
                if reserved + segment > device_memory:
                    ooms += 1
                    if failure[0] < 0:
                        failure[0] = e
                        failure[1] = segment
                        failure[2] = device_memory - reserved
                        failure[3] = allocated
                        failure[4] = reserved
                else:
                    if spares:
                        spares -= 1
                        block = spare[spares]
                    else:
                        block = blocks
                        blocks += 1
                    address[block] = next_address
                    size[block] = segment
                    before[block] = -1
                    after[block] = -1
                    number[block] = registered
                    pool_of[block] = pool
                    registered += 1
                    next_address += segment
                    reserved += segment
                    segments += 1
                    driver[0, calls] = e
                    driver[1, calls] = SEGMENT_ALLOC
                    driver[2, calls] = address[block]
                    driver[3, calls] = segment
                    calls += 1
            if block >= 0:
                rest = size[block] - rounded
                if (pool == SMALL and rest >= UNIT) or (pool == LARGE and rest > SMALL_SIZE):
                    if spares:
                        spares -= 1
                        tail = spare[spares]
                    else:
                        tail = blocks
                        blocks += 1
                    address[tail] = address[block] + rounded
                    size[tail] = rest
                    before[tail] = block
                    after[tail] = after[block]
                    if after[block] >= 0:
                        before[after[block]] = tail
                    after[block] = tail
                    number[tail] = number[block]
                    pool_of[tail] = pool
                    used[tail] = 0
                    size[block] = rounded
                    _insert(keys, counts, pool, rest, number[tail], address[tail], tail)
                used[block] = 1
                block_of[storage[e]] = block
                bytes_of[storage[e]] = asked
                requested += asked
                allocated += size[block]
                out[0, e] = address[block]
                out[1, e] = size[block]
            else:
                out[0, e] = -1
        elif kind == 1:
            block = block_of[storage[e]]
            if block >= 0:
                block_of[storage[e]] = -1
                out[0, e] = address[block]
                out[1, e] = size[block]
                requested -= bytes_of[storage[e]]
                allocated -= size[block]
                used[block] = 0
                pool = pool_of[block]
                left = before[block]
                if left >= 0 and used[left] == 0:
                    _erase(keys, counts, pool, _find(keys[pool], counts[pool], size[left], number[left], address[left]))
                    address[block] = address[left]
                    size[block] += size[left]
                    before[block] = before[left]
                    if before[left] >= 0:
                        after[before[left]] = block
                    spare[spares] = left
                    spares += 1
                right = after[block]
                if right >= 0 and used[right] == 0:
                    _erase(keys, counts, pool, _find(keys[pool], counts[pool], size[right], number[right], address[right]))
                    size[block] += size[right]
                    after[block] = after[right]
                    if after[right] >= 0:
                        before[after[right]] = block
                    spare[spares] = right
                    spares += 1
                _insert(keys, counts, pool, size[block], number[block], address[block], block)
        out[2, e] = requested
        out[3, e] = allocated
        out[4, e] = allocated
        out[5, e] = reserved
        out[6, e] = segments
        out[7, e] = retries
        out[8, e] = ooms
        if stop_at_oom and ooms:
            return out, driver[:, :calls].copy(), e + 1, failure
    return out, driver[:, :calls].copy(), n, failure
