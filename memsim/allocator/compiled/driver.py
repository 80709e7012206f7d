"""The allocator's requests to the driver: segments, address space, pages. The device is its own: no other tenant, no
context.

Addresses start at FIRST_ADDRESS and are never used again, unless the caller gives those of a recording, or asks for
those of Linux (linux_addresses.py).
"""

from __future__ import annotations

from memsim.allocator.answer import DriverAction
from memsim.allocator.compiled.arena import (
    CALLS,
    CAPACITY,
    GIVEN,
    GIVEN_USED,
    NEXT_ADDRESS,
    PAGE,
    RANGES,
    RESERVED,
    USED,
)
from memsim.allocator.compiled.jit import njit
from memsim.allocator.compiled.linux_addresses import give, take

SEGMENT_ALLOC = int(DriverAction.SEGMENT_ALLOC)
SEGMENT_FREE = int(DriverAction.SEGMENT_FREE)
SEGMENT_MAP = int(DriverAction.SEGMENT_MAP)
SEGMENT_UNMAP = int(DriverAction.SEGMENT_UNMAP)
CALL_WORDS = 4  # event, action, address, bytes


@njit(cache=True)
def _note(heap, calls, event, action, address, size):
    at = CALL_WORDS * heap[CALLS]
    calls[at] = event
    calls[at + 1] = action
    calls[at + 2] = address
    calls[at + 3] = size
    heap[CALLS] += 1
    heap[RESERVED] += size if action == SEGMENT_ALLOC or action == SEGMENT_MAP else -size


@njit(cache=True)
def new_address(heap, given, size):
    """Returns a range of addresses of whole pages."""
    if heap[GIVEN_USED] < heap[GIVEN]:
        address = given[heap[GIVEN_USED]]
        heap[GIVEN_USED] += 1
        return address
    address = heap[NEXT_ADDRESS]
    heap[NEXT_ADDRESS] = address + size
    return address


@njit(cache=True)
def allocate_segment(heap, calls, given, event, size):
    """Returns the address of a new segment; 0 where the device has no room for it."""
    pages = (size + PAGE - 1) // PAGE * PAGE
    if heap[USED] + pages > heap[CAPACITY]:
        return 0
    heap[USED] += pages
    address = take(heap, pages) if heap[RANGES] else new_address(heap, given, pages)
    _note(heap, calls, event, SEGMENT_ALLOC, address, size)
    return address


@njit(cache=True)
def free_segment(heap, calls, event, address, size):
    """Returns a segment to the driver."""
    pages = (size + PAGE - 1) // PAGE * PAGE
    heap[USED] -= pages
    if heap[RANGES]:
        give(heap, address, pages)
    _note(heap, calls, event, SEGMENT_FREE, address, size)


@njit(cache=True)
def map_pages(heap, calls, event, address, size):
    """Puts memory behind a range of reserved addresses. False where the device has too little; then none is kept."""
    if heap[USED] + size > heap[CAPACITY]:
        return False
    heap[USED] += size
    _note(heap, calls, event, SEGMENT_MAP, address, size)
    return True


@njit(cache=True)
def unmap_pages(heap, calls, event, address, size):
    """Takes away the memory behind a range of reserved addresses."""
    heap[USED] -= size
    _note(heap, calls, event, SEGMENT_UNMAP, address, size)
