"""The free blocks of a pool, in PyTorch's order: (size, order among equals). Best fit is the first that is not smaller
than the request.

Sizes fall into classes, 64 to a power of two, exact below 64 KiB. A class is a treap (a search tree that hashed
priorities keep balanced) of the blocks themselves; two levels of bits find the next class that has any. Most classes
hold a block or two, so a step costs a few instructions; however many blocks there are, it costs no more than their
logarithm.
"""

from __future__ import annotations

from memsim.allocator.compiled.arena import (
    AGE,
    CLASS_BITS,
    CLASS_SUMMARY,
    COLD,
    GC_TARGET,
    LEFT,
    ORDER,
    POOL_WORDS,
    POOLS,
    RIGHT,
    SEARCHES,
    SIZE,
)
from memsim.allocator.compiled.bits import leading_zeros, trailing_zeros
from memsim.allocator.compiled.jit import njit


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
def _before(heap, a, size, order):
    """1 if block a's key is less than (size, order), else 0. Without branches, which no processor could foresee."""
    s = heap[a + SIZE]
    return int(s < size) | (int(s == size) & int(heap[a + ORDER] < order))


@njit(cache=True)
def large(heap, pool):
    """1 for a pool of large blocks, 0 for small ones."""
    return ((pool - heap[POOLS]) // POOL_WORDS) & 1


@njit(cache=True)
def insert(heap, pool, block):
    """Makes a block, whose size and order are set, one of the pool's free blocks; its age starts anew."""
    c = class_of(heap[block + SIZE])
    slot = pool + c
    if heap[slot] != 0:
        _insert_among(heap, slot, block)
    else:
        heap[slot] = block
        heap[block + LEFT] = 0
        heap[block + RIGHT] = 0
        word = pool + CLASS_BITS + (c >> 6)
        bits = heap[word]
        heap[word] = bits | (1 << (c & 63))
        if bits == 0:
            heap[pool + CLASS_SUMMARY] |= 1 << (c >> 6)
    if heap[GC_TARGET] >= 0:
        heap[block + heap[COLD] + AGE] = heap[SEARCHES + large(heap, pool)]


@njit(cache=True)
def _insert_among(heap, slot, block):
    """Inserts a block into the treap that hangs at a slot."""
    size, order, priority = heap[block + SIZE], heap[block + ORDER], _priority(block)
    t = heap[slot]
    while t != 0 and _priority(t) >= priority:
        slot = t + LEFT + _before(heap, t, size, order)
        t = heap[slot]
    heap[slot] = block
    left, right = block + LEFT, block + RIGHT
    while t != 0:  # what hung here parts into what comes before the block and what comes after it
        if _before(heap, t, size, order):
            heap[left] = t
            left = t + RIGHT
            t = heap[left]
        else:
            heap[right] = t
            right = t + LEFT
            t = heap[right]
    heap[left] = 0
    heap[right] = 0


@njit(cache=True)
def unlink(heap, pool, slot):
    """Takes the block that hangs at a slot (a root, or a word of another block) out of the set, and returns it."""
    block = heap[slot]
    left, right = heap[block + LEFT], heap[block + RIGHT]
    if left != 0 and right != 0:
        _join(heap, slot, left, right)
    else:
        heap[slot] = left + right
        if left + right == 0:
            c = class_of(heap[block + SIZE])
            if slot == pool + c:
                word = pool + CLASS_BITS + (c >> 6)
                bits = heap[word] & ~(1 << (c & 63))
                heap[word] = bits
                if bits == 0:
                    heap[pool + CLASS_SUMMARY] &= ~(1 << (c >> 6))
    return block


@njit(cache=True)
def _join(heap, slot, left, right):
    """Hangs two treaps, all of left before all of right, at a slot as one."""
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


@njit(cache=True)
def remove(heap, pool, block):
    """Takes a block out of the set."""
    slot = pool + class_of(heap[block + SIZE])
    if heap[slot] != block:
        slot = _slot_of(heap, slot, block)
    unlink(heap, pool, slot)


@njit(cache=True)
def _slot_of(heap, slot, block):
    size, order = heap[block + SIZE], heap[block + ORDER]
    t = heap[slot]
    while t != block:
        slot = t + LEFT + _before(heap, t, size, order)
        t = heap[slot]
    return slot


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
def following(heap, pool, size, order):
    """The first block whose key is greater than (size, order); 0 if there is none. From size 0 on, it walks the whole
    pool.
    """
    c = class_of(size)
    found = 0
    t = heap[pool + c]
    while t != 0:
        if _before(heap, t, size, order + 1):
            t = heap[t + RIGHT]
        else:
            found = t
            t = heap[t + LEFT]
    if found == 0:
        slot = _first_above(heap, pool, c)
        if slot != 0:
            found = heap[slot]
    return found
