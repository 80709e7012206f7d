"""The arena: one int64 array that holds all data of the compiled allocator, and the meaning of each of its words.

A structure is a run of words. Its name is the index of its first word, and 0 names nothing. So links between structures
are plain integers, a function needs one argument, and a block's hot words share a cache line. In order, the arena holds

    state     settings and counters, the words below
    pools     POOL_WORDS each: free blocks of one stream, small (2 × stream rank) or large (2 × stream rank + 1)
    queues    QUEUE_WORDS each: per stream, the frees that wait for it
    uses      USE_WORDS each: a block's use on a foreign stream; later the event that its free waits for
    blocks    BLOCK_WORDS each
    colder    words of the blocks that few settings need, at a block's index + heap[COLD]
    ranges    of the driver's addresses, where they are as Linux hands them out (linux_addresses.py)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = 512  # bytes; every size and address is a multiple
SMALL_SIZE = 1 << 20  # the largest request of the small pool
SMALL_SEGMENT = 2 << 20
MIN_LARGE = 10 << 20  # from here on a request gets a segment of its own size
ROUND_LARGE = 2 << 20
PAGE = 2 << 20  # the driver's unit
FIRST_ADDRESS = 0x700000000000
ABOVE_CHUNKS = 0x300000000000  # linux_addresses.py counts down from here
NEVER = 1 << 62

# Settings, fixed during a replay.
CAPACITY = 1  # bytes of the device
LIMIT = 2  # bytes that may be reserved; NEVER without a limit
MAX_SPLIT = 3  # NEVER: everything may be split
NON_SPLIT = 4
GC_TARGET = 5  # garbage is collected while more than this is reserved; -1: no garbage collection
EXPANDABLE = 6  # 0 or 1
LARGE_SEGMENT = 7
RESERVATION = 8  # bytes of address space of an expandable segment, before rounding to pages
REJECT = 9  # requests that would reserve more than this are refused without trying; NEVER
# The order of free blocks of one size: TIE_ADDRESS, TIE_CREATION, or TIE_SEGMENT (and in a segment by address).
TIE_RULE = 10
DELAYED = 11  # 0: events complete at once; 1: with COMPLETE
STREAMS = 12
POOLS = 13  # index of the first pool
QUEUES = 14
COLD = 15
KEEPS_SHORT = 17  # 1: a reservation too short for the request that made it stays
FIRST_BLOCK = 18
DEFERS = 19  # 1: some frees wait for a stream
GIVEN = 16  # number of addresses that the driver must hand out first
RANGES = 20  # index of the lists of linux_addresses.py; 0: addresses count up
RANGE_ROOM = 21  # number of ranges that each list has room for
HALTS = 22  # 1: stops once, ahead of the first request that the device may have no room for
ROUNDING = 32  # 16 words: divisions for sizes in [1, 2) MiB, [2, 4) MiB …

# Counters, as PyTorch's memory_stats() counts them.
REQUESTED = 48
ALLOCATED = 49
ACTIVE = 50
RESERVED = 51
SEGMENTS = 52
RETRIES = 53
OOMS = 54
USED = 55  # bytes that the driver has given, in whole pages
NEXT_ADDRESS = 56
REGISTERED = 57  # number of segments made so far, or with TIE_CREATION of blocks
PENDING = 58  # number of events that frees wait for
CALLS = 59  # number of driver calls made
SEARCHES = 60  # and 61: the garbage collector's clocks of the small and the large pools
SPARE = 62  # the first recycled block
NEXT_BLOCK = 63
NEXT_USE = 64
REJECTED = 65  # 1 while a request is refused by REJECT
GIVEN_USED = 66
# The first request that failed: its event + 1, then bytes tried, device free, allocated, reserved, and 1 if it was
# rejected.
FAILED = 67
HOLES, GAPS, CHUNKS = 74, 75, 76  # number of ranges in the lists of linux_addresses.py
LOWEST = 77  # the lowest address of any chunk
STATE_WORDS = 128

TIE_ADDRESS, TIE_CREATION, TIE_SEGMENT = 0, 1, 2
OFFSET_BITS = 38  # of ORDER under TIE_SEGMENT: the offset in the segment, in units; above them the segment's number

# A pool: a root per size class, a bit per class that has blocks, a bit per word of those.
CLASSES = 3072
CLASS_BITS = CLASSES
CLASS_SUMMARY = CLASS_BITS + CLASSES // 64
UNMAPPED_HEAD = CLASS_SUMMARY + 1  # unmapped address space, a list in order of address
POOL_WORDS = 3136

QUEUE_HEAD, QUEUE_TAIL, QUEUE_READY = 0, 1, 2
QUEUE_WORDS = 4

USE_STREAM, USE_NEXT, USE_BLOCK = 0, 1, 2
USE_WORDS = 4

# A block. While it is in use or waiting, it is in no set, and the words of its links hold other values.
SIZE = 0
ORDER = 1  # among blocks of one size
ADDRESS = 2
LEFT = 3
RIGHT = 4
PREV = 5  # neighbours by address in the same segment
NEXT = 6
META = 7  # its pool's index × 8, and flags
BLOCK_WORDS = 8
ASKED = LEFT  # bytes requested, of a block in use
USES = RIGHT  # of a block in use, its uses on foreign streams; of one that waits, the number of events
BUSY, IS_UNMAPPED, IS_EXPANDABLE = 1, 2, 4
FLAGS = 7

# Its colder words.
AGE = 0  # the garbage collector's clock when the block became free
BASE = 1  # the first address of its reservation

ARRAY = NDArray[np.int64]


def blank(streams: int, uses: int, blocks: int, ranges: int = 0) -> ARRAY:
    """Returns an arena without settings, for these numbers of streams, uses on foreign streams and blocks. Memory that
    is never touched costs nothing.

    ranges: the number of ranges that each list of the driver's addresses has room for, as Linux hands them out; 0:
    addresses count up.
    """
    pools = STATE_WORDS
    queues = pools + 2 * streams * POOL_WORDS
    first_use = queues + streams * QUEUE_WORDS
    first_block = -(-(first_use + uses * USE_WORDS) // BLOCK_WORDS) * BLOCK_WORDS
    last = first_block + 2 * blocks * BLOCK_WORDS
    heap = np.zeros(last + 6 * ranges, np.int64)
    heap[RANGES], heap[RANGE_ROOM], heap[LOWEST] = last if ranges else 0, ranges, ABOVE_CHUNKS
    heap[POOLS], heap[QUEUES], heap[NEXT_USE], heap[NEXT_BLOCK] = pools, queues, first_use, first_block
    heap[FIRST_BLOCK] = first_block
    heap[COLD] = blocks * BLOCK_WORDS
    heap[STREAMS] = streams
    heap[NEXT_ADDRESS] = FIRST_ADDRESS
    return heap


def copied(heap: ARRAY) -> ARRAY:
    """Returns a copy of the arena. Memory that was never touched is not copied."""
    used, first, cold = int(heap[NEXT_BLOCK]), int(heap[FIRST_BLOCK]), int(heap[COLD])
    again = np.zeros_like(heap)
    again[:used] = heap[:used]
    again[first + cold : used + cold] = heap[first + cold : used + cold]
    if heap[RANGES]:
        again[heap[RANGES] :] = heap[heap[RANGES] :]
    return again
