"""The free blocks of a pool, in PyTorch's order: (size, tie, address). Best fit is the first that is not smaller than the request.

Sizes fall into classes, 64 to a power of two, exact below 64 KiB. A class is a treap (a search tree that hashed priorities keep balanced) of
the blocks themselves; two levels of bits find the next class that has any. Most classes hold a block or two, so a step costs a few
instructions; however many blocks there are, it costs no more than their logarithm.
"""

from __future__ import annotations

from numba import njit

from memsim.allocator.arena import ADDRESS, AGE, CLASS_BITS, CLASS_SUMMARY, COLD, GC_TARGET, LEFT, POOL_WORDS, POOLS, RIGHT, SEARCHES, SIZE, TIE
from memsim.allocator.bits import leading_zeros, trailing_zeros


@njit(cache=True)
def class_of(size):
    """The class of a size in bytes: monotone, below CLASSES for sizes below 2^60."""
    units = size >> 9
    shift = max(57 - leading_zeros(units), 0)
    return (shift << 6) + (units >> shift)


@njit(cache=True)
def _priority(block):
    return block * -7046029254386353131  # 2^64 divided by the golden ratio, as a signed word: Fibonacci hashing


@njit(cache=True)
def _before(heap, a, size, tie, address):
    """Is block a's key less than (size, tie, address)?"""
    s = heap[a + SIZE]
    if s != size:
        return s < size
    t = heap[a + TIE]
    if t != tie:
        return t < tie
    return heap[a + ADDRESS] < address


@njit(cache=True)
def insert(heap, pool, block):
    """Makes a block, whose size, tie and address are set, one of the pool's free blocks; its age starts anew."""
    size, tie, address = heap[block + SIZE], heap[block + TIE], heap[block + ADDRESS]
    c = class_of(size)
    slot = pool + c
    t = heap[slot]
    if t == 0:
        heap[pool + CLASS_BITS + (c >> 6)] |= 1 << (c & 63)
        heap[pool + CLASS_SUMMARY] |= 1 << (c >> 6)
    priority = _priority(block)
    while t != 0 and _priority(t) >= priority:
        slot = t + RIGHT if _before(heap, t, size, tie, address) else t + LEFT
        t = heap[slot]
    heap[slot] = block
    left, right = block + LEFT, block + RIGHT
    while t != 0:  # what hung here parts into what comes before the block and what comes after it
        if _before(heap, t, size, tie, address):
            heap[left] = t
            left = t + RIGHT
            t = heap[left]
        else:
            heap[right] = t
            right = t + LEFT
            t = heap[right]
    heap[left] = 0
    heap[right] = 0
    if heap[GC_TARGET] >= 0:
        heap[block + heap[COLD] + AGE] = heap[SEARCHES + large(heap, pool)]


@njit(cache=True)
def large(heap, pool):
    """1 for a pool of large blocks, 0 for small ones."""
    return ((pool - heap[POOLS]) // POOL_WORDS) & 1


@njit(cache=True)
def unlink(heap, pool, slot):
    """Takes the block that hangs at a slot (a root, or a word of another block) out of the set, and returns it."""
    block = heap[slot]
    left, right = heap[block + LEFT], heap[block + RIGHT]
    while left != 0 and right != 0:
        if _priority(left) >= _priority(right):
            heap[slot] = left
            slot = left + RIGHT
            left = heap[slot]
        else:
            heap[slot] = right
            slot = right + LEFT
            right = heap[slot]
    heap[slot] = left + right
    c = class_of(heap[block + SIZE])
    if heap[pool + c] == 0:
        word = pool + CLASS_BITS + (c >> 6)
        heap[word] &= ~(1 << (c & 63))
        if heap[word] == 0:
            heap[pool + CLASS_SUMMARY] &= ~(1 << (c >> 6))
    return block


@njit(cache=True)
def remove(heap, pool, block):
    """Takes a block out of the set."""
    size, tie, address = heap[block + SIZE], heap[block + TIE], heap[block + ADDRESS]
    slot = pool + class_of(size)
    t = heap[slot]
    while t != block:
        slot = t + RIGHT if _before(heap, t, size, tie, address) else t + LEFT
        t = heap[slot]
    unlink(heap, pool, slot)


@njit(cache=True)
def _first_above(heap, pool, c):
    """The slot of the first block in the classes above c; 0 if there is none."""
    c += 1
    word = c >> 6
    rest = heap[pool + CLASS_BITS + word] >> (c & 63)
    if rest != 0:
        c += trailing_zeros(rest)
    else:
        word += 1
        rest = heap[pool + CLASS_SUMMARY] >> word
        if rest == 0:
            return 0
        word += trailing_zeros(rest)
        c = (word << 6) + trailing_zeros(heap[pool + CLASS_BITS + word])
    slot = pool + c
    while heap[heap[slot] + LEFT] != 0:
        slot = heap[slot] + LEFT
    return slot


@njit(cache=True)
def first_fit(heap, pool, size):
    """The slot of the first block of at least `size` bytes; 0 if there is none."""
    c = class_of(size)
    found = 0
    slot = pool + c
    t = heap[slot]
    while t != 0:
        if heap[t + SIZE] >= size:
            found = slot
            slot = t + LEFT
        else:
            slot = t + RIGHT
        t = heap[slot]
    return found if found != 0 else _first_above(heap, pool, c)


@njit(cache=True)
def following(heap, pool, size, tie, address):
    """The first block whose key is greater than (size, tie, address); 0 if there is none. From size 0 on, it walks the whole pool."""
    c = class_of(size)
    found = 0
    t = heap[pool + c]
    while t != 0:
        if _before(heap, t, size, tie, address + 1):
            t = heap[t + RIGHT]
        else:
            found = t
            t = heap[t + LEFT]
    if found == 0:
        slot = _first_above(heap, pool, c)
        if slot != 0:
            found = heap[slot]
    return found
