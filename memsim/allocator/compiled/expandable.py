"""Expandable segments: a reservation of address space behind which memory is put as it is needed, lowest addresses
first.

Unmapped address space is blocks too, flagged IS_UNMAPPED: neighbours of the mapped ones, but in a list per pool, in
order of address.
"""

from __future__ import annotations

from memsim.allocator.compiled.arena import (
    ADDRESS,
    BASE,
    BUSY,
    COLD,
    IS_EXPANDABLE,
    IS_UNMAPPED,
    KEEPS_SHORT,
    LARGE_SEGMENT,
    LEFT,
    META,
    NEXT,
    ORDER,
    PREV,
    RESERVATION,
    RIGHT,
    SIZE,
    SMALL_SEGMENT,
    UNMAPPED_HEAD,
)
from memsim.allocator.compiled.blocks import (
    absorb,
    move,
    new_block,
    order_of_segment,
    put_after,
    put_before,
    recycle,
    settle,
)
from memsim.allocator.compiled.driver import map_pages, new_address, unmap_pages
from memsim.allocator.compiled.free_sets import following, insert, large, remove
from memsim.allocator.compiled.jit import njit


@njit(cache=True)
def _page(heap, pool):
    return heap[LARGE_SEGMENT] if large(heap, pool) == 1 else SMALL_SEGMENT


@njit(cache=True)
def _list_unmapped(heap, pool, block):
    before, after = 0, heap[pool + UNMAPPED_HEAD]
    while after != 0 and heap[after + ADDRESS] < heap[block + ADDRESS]:
        before, after = after, heap[after + RIGHT]
    heap[block + LEFT] = before
    heap[block + RIGHT] = after
    if before != 0:
        heap[before + RIGHT] = block
    else:
        heap[pool + UNMAPPED_HEAD] = block
    if after != 0:
        heap[after + LEFT] = block


@njit(cache=True)
def _unlist_unmapped(heap, pool, block):
    before, after = heap[block + LEFT], heap[block + RIGHT]
    if before != 0:
        heap[before + RIGHT] = after
    else:
        heap[pool + UNMAPPED_HEAD] = after
    if after != 0:
        heap[after + LEFT] = before


@njit(cache=True)
def _usable(heap, block):
    return block != 0 and heap[block + META] & BUSY == 0


@njit(cache=True)
def _piece(heap, of, address, size, meta):
    """A new block of the same reservation as another."""
    block = new_block(heap, heap[of + ADDRESS], size, heap[of + ORDER], meta)
    move(heap, block, address - heap[of + ADDRESS])
    heap[block + heap[COLD] + BASE] = heap[of + heap[COLD] + BASE]
    return block


@njit(cache=True)
def _reach(heap, block):
    """A block's size, with that of the unmapped space right behind it: what it could grow to."""
    after = heap[block + NEXT]
    return heap[block + SIZE] + (heap[after + SIZE] if after != 0 and heap[after + META] & IS_UNMAPPED else 0)


@njit(cache=True)
def prefer_fixed(heap, pool, block):
    """The block to take in place of the best fit: one that cannot grow, or less, as long as the next in order can grow
    less.
    """
    while heap[block + META] & IS_EXPANDABLE:
        after = following(heap, pool, heap[block + SIZE], heap[block + ORDER])
        if after == 0 or _reach(heap, after) >= _reach(heap, block):
            break
        block = after
    return block


@njit(cache=True)
def _find_place(heap, given, pool, size):
    """The lowest free or unmapped block with `size` bytes of free address space from it on, in a new reservation if
    need be; 0 if none can be so large.
    """
    unmapped = heap[pool + UNMAPPED_HEAD]
    while unmapped != 0:
        start = heap[unmapped + PREV] if _usable(heap, heap[unmapped + PREV]) else unmapped
        room = 0
        at = start
        while room < size and _usable(heap, at):
            room += heap[at + SIZE]
            at = heap[at + NEXT]
        if room >= size:
            return start
        unmapped = heap[unmapped + RIGHT]
    page = _page(heap, pool)
    reserved = (heap[RESERVATION] + page - 1) // page * page
    address = new_address(heap, given, reserved)
    if reserved < size and heap[KEEPS_SHORT] == 0:
        return 0
    start = new_block(
        heap, address, reserved, order_of_segment(heap, address), (pool << 3) | IS_EXPANDABLE | IS_UNMAPPED
    )
    heap[start + heap[COLD] + BASE] = address
    _list_unmapped(heap, pool, start)
    return start


@njit(cache=True)
def _map(heap, calls, event, pool, block, size):
    """Maps the first `size` bytes of an unmapped block, in whole pages, and merges; False where the device has too
    little memory.
    """
    page = _page(heap, pool)
    mapped = (size + page - 1) // page * page
    address = heap[block + ADDRESS]
    if not map_pages(heap, calls, event, address, mapped):
        return False
    _unlist_unmapped(heap, pool, block)
    rest = heap[block + SIZE] - mapped
    if rest > 0:
        remainder = _piece(heap, block, address + mapped, rest, heap[block + META])
        heap[block + SIZE] = mapped
        put_after(heap, remainder, block)
        _list_unmapped(heap, pool, remainder)
    heap[block + META] &= ~IS_UNMAPPED
    settle(heap, pool, block)
    return True


@njit(cache=True)
def grow(heap, calls, given, event, pool, size):
    """A block of at least `size` bytes, in no set; 0 where the device has too little memory. What was mapped on the way
    stays mapped.
    """
    block = _find_place(heap, given, pool, size)
    if block == 0:
        return 0
    if heap[block + META] & IS_UNMAPPED:
        if not _map(heap, calls, event, pool, block, min(size, heap[block + SIZE])):
            return 0
    while heap[block + SIZE] < size:
        after = heap[block + NEXT]
        if not _map(heap, calls, event, pool, after, min(size - heap[block + SIZE], heap[after + SIZE])):
            return 0
        block = after
    remove(heap, pool, block)
    return block


@njit(cache=True)
def _absorb_unmapped(heap, pool, block, other):
    if other != 0 and heap[other + META] == heap[block + META]:
        _unlist_unmapped(heap, pool, other)
        absorb(heap, block, other)


@njit(cache=True)
def unmap(heap, calls, event, pool, block):
    """Takes the memory of the whole pages inside a free block away; a reservation without any memory is dropped."""
    page = _page(heap, pool)
    base, start, size = heap[block + heap[COLD] + BASE], heap[block + ADDRESS], heap[block + SIZE]
    first = base + (start - base + page - 1) // page * page
    last = base + (start + size - base) // page * page
    if first >= last:
        return
    remove(heap, pool, block)
    meta = heap[block + META]
    if first > start:
        head = _piece(heap, block, start, first - start, meta)
        put_before(heap, head, block)
        insert(heap, pool, head)
    if start + size > last:
        tail = _piece(heap, block, last, start + size - last, meta)
        put_after(heap, tail, block)
        insert(heap, pool, tail)
    move(heap, block, first - start)
    heap[block + SIZE] = last - first
    heap[block + META] = meta | IS_UNMAPPED
    _absorb_unmapped(heap, pool, block, heap[block + PREV])
    _absorb_unmapped(heap, pool, block, heap[block + NEXT])
    unmap_pages(heap, calls, event, first, last - first)
    if heap[block + PREV] == 0 and heap[block + NEXT] == 0:
        recycle(heap, block)
    else:
        _list_unmapped(heap, pool, block)
