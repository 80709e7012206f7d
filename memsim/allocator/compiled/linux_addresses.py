"""The addresses that NVIDIA's driver hands out on Linux, as observed: they decide between equal free blocks in PyTorch
up to 2.12.

A request takes the lowest hole that fits within the chunks of address space reserved so far. Where none does, a new
chunk, of the request rounded up to 32 MiB, is reserved as mmap does: at the top of the highest gap that fits, else
below all others. A chunk that is empty again becomes a gap. Three sorted lists of ranges (address, bytes) in the arena:
holes, gaps, chunks.
"""

from __future__ import annotations

from memsim.allocator.compiled.arena import CHUNKS, GAPS, HOLES, LOWEST, RANGE_ROOM, RANGES
from memsim.allocator.compiled.jit import njit

CHUNK = 32 << 20  # bytes


@njit(cache=True)
def _first(heap, which):
    """Index of the first range of a list; HOLES, GAPS and CHUNKS are the words that count its ranges."""
    return heap[RANGES] + 2 * heap[RANGE_ROOM] * (which - HOLES)


@njit(cache=True)
def _place(heap, which, address):
    """How many ranges of the list begin below the address."""
    first, low, high = _first(heap, which), 0, heap[which]
    while low < high:
        middle = (low + high) // 2
        if heap[first + 2 * middle] < address:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _insert(heap, which, place, address, size):
    first = _first(heap, which)
    for i in range(heap[which], place, -1):
        heap[first + 2 * i] = heap[first + 2 * i - 2]
        heap[first + 2 * i + 1] = heap[first + 2 * i - 1]
    heap[first + 2 * place] = address
    heap[first + 2 * place + 1] = size
    heap[which] += 1


@njit(cache=True)
def _remove(heap, which, place):
    first = _first(heap, which)
    heap[which] -= 1
    for i in range(place, heap[which]):
        heap[first + 2 * i] = heap[first + 2 * i + 2]
        heap[first + 2 * i + 1] = heap[first + 2 * i + 3]


@njit(cache=True)
def _merge(heap, which, address, size, low, high):
    """Inserts a range, joined with its neighbours within [low, high); its place."""
    first, place = _first(heap, which), _place(heap, which, address)
    _insert(heap, which, place, address, size)
    following = first + 2 * place + 2
    if place + 1 < heap[which] and address + size == heap[following] and heap[following] < high:
        heap[first + 2 * place + 1] += heap[following + 1]
        _remove(heap, which, place + 1)
    before = first + 2 * place - 2
    if place > 0 and heap[before] + heap[before + 1] == address and heap[before] >= low:
        heap[before + 1] += heap[first + 2 * place + 1]
        _remove(heap, which, place)
        place -= 1
    return place


@njit(cache=True)
def take(heap, size):
    """An address for so many bytes, whole pages."""
    first = _first(heap, HOLES)
    for i in range(heap[HOLES]):
        if heap[first + 2 * i + 1] >= size:
            address = heap[first + 2 * i]
            heap[first + 2 * i] += size
            heap[first + 2 * i + 1] -= size
            if heap[first + 2 * i + 1] == 0:
                _remove(heap, HOLES, i)
            return address
    chunk = (size + CHUNK - 1) // CHUNK * CHUNK
    base = 0
    first = _first(heap, GAPS)
    for i in range(heap[GAPS] - 1, -1, -1):
        if heap[first + 2 * i + 1] >= chunk:
            heap[first + 2 * i + 1] -= chunk
            base = heap[first + 2 * i] + heap[first + 2 * i + 1]
            if heap[first + 2 * i + 1] == 0:
                _remove(heap, GAPS, i)
            break
    if base == 0:
        heap[LOWEST] -= chunk
        base = heap[LOWEST]
    _insert(heap, CHUNKS, _place(heap, CHUNKS, base), base, chunk)
    if chunk > size:
        _insert(heap, HOLES, _place(heap, HOLES, base + size), base + size, chunk - size)
    return base


@njit(cache=True)
def give(heap, address, size):
    """Gives the range at an address back."""
    at = _place(heap, CHUNKS, address + 1) - 1
    first = _first(heap, CHUNKS)
    low, length = heap[first + 2 * at], heap[first + 2 * at + 1]
    place = _merge(heap, HOLES, address, size, low, low + length)
    hole = _first(heap, HOLES) + 2 * place
    if heap[hole] != low or heap[hole + 1] != length:
        return
    _remove(heap, HOLES, place)
    _remove(heap, CHUNKS, at)
    place = _merge(heap, GAPS, low, length, 0, 1 << 62)
    gap = _first(heap, GAPS) + 2 * place
    if heap[gap] == heap[LOWEST]:
        heap[LOWEST] += heap[gap + 1]
        _remove(heap, GAPS, place)
