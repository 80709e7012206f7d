"""Blocks, from making to recycling: free, merge with neighbours, and the events that frees wait for."""

from __future__ import annotations

from memsim.allocator.compiled.arena import (
    ACTIVE,
    ADDRESS,
    ALLOCATED,
    ASKED,
    BLOCK_WORDS,
    BUSY,
    DELAYED,
    META,
    NEXT,
    NEXT_BLOCK,
    NEXT_USE,
    OFFSET_BITS,
    ORDER,
    PENDING,
    POOL_WORDS,
    POOLS,
    PREV,
    QUEUE_HEAD,
    QUEUE_READY,
    QUEUE_TAIL,
    QUEUE_WORDS,
    QUEUES,
    REGISTERED,
    REQUESTED,
    SIZE,
    SPARE,
    STREAMS,
    TIE_CREATION,
    TIE_RULE,
    TIE_SEGMENT,
    UNIT,
    USE_BLOCK,
    USE_NEXT,
    USE_STREAM,
    USE_WORDS,
    USES,
)
from memsim.allocator.compiled.free_sets import insert, remove
from memsim.allocator.compiled.jit import njit


@njit(cache=True)
def new_block(heap, address, size, order, meta):
    """Returns a new block without neighbours, in no set. Under TIE_CREATION its order is the next number instead."""
    block = heap[SPARE]
    if block != 0:
        heap[SPARE] = heap[block + NEXT]
    else:
        block = heap[NEXT_BLOCK]
        heap[NEXT_BLOCK] = block + BLOCK_WORDS
    if heap[TIE_RULE] == TIE_CREATION:
        heap[REGISTERED] += 1
        order = heap[REGISTERED]
    heap[block + SIZE] = size
    heap[block + ORDER] = order
    heap[block + ADDRESS] = address
    heap[block + PREV] = 0
    heap[block + NEXT] = 0
    heap[block + META] = meta
    return block


@njit(cache=True)
def order_of_segment(heap, address):
    """Returns the order of the first block of a new segment or reservation."""
    if heap[TIE_RULE] == TIE_SEGMENT:
        heap[REGISTERED] += 1
        return heap[REGISTERED] << OFFSET_BITS
    return address // UNIT


@njit(cache=True)
def move(heap, block, distance):
    """Makes a block, in no set, begin `distance` bytes later."""
    heap[block + ADDRESS] += distance
    if heap[TIE_RULE] != TIE_CREATION:
        heap[block + ORDER] += distance >> 9


@njit(cache=True)
def recycle(heap, block):
    """Recycles the words of a block that is in no set, and no block's neighbour."""
    heap[block + NEXT] = heap[SPARE]
    heap[SPARE] = block


@njit(cache=True)
def put_before(heap, block, other):
    """Makes block the neighbour just before other."""
    before = heap[other + PREV]
    heap[block + PREV] = before
    heap[block + NEXT] = other
    heap[other + PREV] = block
    if before != 0:
        heap[before + NEXT] = block


@njit(cache=True)
def put_after(heap, block, other):
    """Makes block the neighbour just after other."""
    after = heap[other + NEXT]
    heap[block + NEXT] = after
    heap[block + PREV] = other
    heap[other + NEXT] = block
    if after != 0:
        heap[after + PREV] = block


@njit(cache=True)
def absorb(heap, block, other):
    """Makes a neighbour, which is in no set any more, part of block."""
    if heap[block + PREV] == other:
        before = heap[other + PREV]
        move(heap, block, heap[other + ADDRESS] - heap[block + ADDRESS])
        heap[block + PREV] = before
        if before != 0:
            heap[before + NEXT] = block
    else:
        after = heap[other + NEXT]
        heap[block + NEXT] = after
        if after != 0:
            heap[after + PREV] = block
    heap[block + SIZE] += heap[other + SIZE]
    recycle(heap, other)


@njit(cache=True)
def settle(heap, pool, block):
    """Merges a free block, in no set, with its free neighbours, and makes it one of the pool's free blocks."""
    meta = heap[block + META]  # neighbours of the same segment differ in their flags only
    before, after = heap[block + PREV], heap[block + NEXT]
    if before != 0 and heap[before + META] == meta:
        remove(heap, pool, before)
        absorb(heap, block, before)
    if after != 0 and heap[after + META] == meta:
        remove(heap, pool, after)
        absorb(heap, block, after)
    insert(heap, pool, block)


@njit(cache=True)
def _complete_free(heap, block):
    heap[ACTIVE] -= heap[block + SIZE]
    heap[REQUESTED] -= heap[block + ASKED]
    meta = heap[block + META] & ~BUSY
    heap[block + META] = meta
    settle(heap, meta >> 3, block)


@njit(cache=True)
def free(heap, block):
    """Frees a block for its user: at once, or when every foreign stream that used the block has reached that point."""
    heap[ALLOCATED] -= heap[block + SIZE]
    use = heap[block + USES]
    if use == 0:
        _complete_free(heap, block)
        return
    heap[block + USES] = 0
    while use != 0:
        following = heap[use + USE_NEXT]
        queue = heap[QUEUES] + heap[use + USE_STREAM] * QUEUE_WORDS
        heap[use + USE_NEXT] = 0
        heap[use + USE_BLOCK] = block
        if heap[queue + QUEUE_HEAD] == 0:
            heap[queue + QUEUE_HEAD] = use
        else:
            heap[heap[queue + QUEUE_TAIL] + USE_NEXT] = use
        heap[queue + QUEUE_TAIL] = use
        heap[block + USES] += 1
        heap[PENDING] += 1
        use = following


@njit(cache=True)
def record_stream(heap, block, stream):
    """Notes that the block is used on a stream (its rank). Its own stream does not count, nor does a second use."""
    if ((heap[block + META] >> 3) - heap[POOLS]) // (2 * POOL_WORDS) == stream:
        return
    use = heap[block + USES]
    while use != 0:
        if heap[use + USE_STREAM] == stream:
            return
        use = heap[use + USE_NEXT]
    use = heap[NEXT_USE]
    heap[NEXT_USE] = use + USE_WORDS
    heap[use + USE_STREAM] = stream
    heap[use + USE_NEXT] = heap[block + USES]
    heap[block + USES] = use


@njit(cache=True)
def complete(heap, stream):
    """Marks the events recorded so far on a stream (its rank) as completed."""
    queue = heap[QUEUES] + stream * QUEUE_WORDS
    heap[queue + QUEUE_READY] = heap[queue + QUEUE_TAIL] if heap[queue + QUEUE_HEAD] != 0 else 0


@njit(cache=True)
def process_events(heap, wait):
    """Frees the blocks whose events have completed; with `wait`, all that wait. A stream's events are taken in order,
    streams by their rank.
    """
    for stream in range(heap[STREAMS]):
        queue = heap[QUEUES] + stream * QUEUE_WORDS
        if heap[queue + QUEUE_HEAD] == 0:
            continue
        if wait or heap[DELAYED] == 0:
            heap[queue + QUEUE_READY] = heap[queue + QUEUE_TAIL]
        last = heap[queue + QUEUE_READY]
        use = heap[queue + QUEUE_HEAD] if last != 0 else 0
        while use != 0:
            block = heap[use + USE_BLOCK]
            heap[block + USES] -= 1
            heap[PENDING] -= 1
            if heap[block + USES] == 0:
                _complete_free(heap, block)
            use = heap[use + USE_NEXT] if use != last else 0
            if use == 0:
                heap[queue + QUEUE_HEAD] = heap[last + USE_NEXT]
        heap[queue + QUEUE_READY] = 0
