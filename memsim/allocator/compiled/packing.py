"""Offline placement: buffers whose lifetimes are all known get fixed offsets, as low as a greedy order finds them.
Compiled.

Buffers come sorted by their first moment; lifetimes are half-open.
"""

from __future__ import annotations

import numpy as np

from memsim.allocator.compiled.jit import njit

PASSES = 12  # over the buffers in the way, before they are sorted


@njit(cache=True, nogil=True)
def alive_at(lower, upper, every):
    """Which buffers are alive when buffer 0, every, 2 × every … begins, of those that began before it: (first [m + 1],
    members), CSR-like.
    """
    n = len(lower)
    marks = (n + every - 1) // every
    first = np.zeros(marks + 1, np.int64)
    members = np.empty(1024, np.int64)
    count = 0
    for mark in range(marks):
        first[mark] = count
        begin = mark * every
        moment = lower[begin]
        before = first[mark - 1] if mark else 0
        if count + (count - before) + every > len(members):  # at most all of the mark before, and all since
            longer = np.empty(2 * (count + (count - before) + every), np.int64)
            for at in range(count):
                longer[at] = members[at]
            members = longer
        end = count
        for at in range(before, end):
            if upper[members[at]] > moment:
                members[count] = members[at]
                count += 1
        for i in range(max(begin - every, 0), begin):
            if upper[i] > moment:
                members[count] = i
                count += 1
    first[marks] = count
    return first, members


@njit(cache=True, nogil=True)
def place(lower, upper, size, order, offset, first, members, every, most):
    """Places the buffers of `order` one after the other at the lowest offset that is free for all of their lifetime.

    lower, upper, size [n]; offset [n]: in and out, -1 where not placed yet. first, members, every: of alive_at().
    Returns the height; stops with a larger one as soon as it is above `most`.
    """
    n = len(lower)
    starts = np.empty(n, np.int64)
    ends = np.empty(n, np.int64)
    height = 0
    for i in order:
        count = 0
        mark = i // every
        for at in range(first[mark], first[mark + 1]):
            j = members[at]
            if offset[j] >= 0 and upper[j] > lower[i]:
                starts[count] = offset[j]
                ends[count] = offset[j] + size[j]
                count += 1
        j = mark * every
        while j < n and lower[j] < upper[i]:
            if offset[j] >= 0 and upper[j] > lower[i]:
                starts[count] = offset[j]
                ends[count] = offset[j] + size[j]
                count += 1
            j += 1
        at, settled, passes = 0, False, 0
        while not settled:  # whoever is in the way stays in the way up to its end, and whoever is below is so for good
            settled = True
            passes += 1
            if passes == PASSES:  # many on top of each other: from here on from the lowest to the highest, once
                for k in np.argsort(starts[:count]):
                    if ends[k] > at:
                        if starts[k] >= at + size[i]:
                            break
                        at = ends[k]
                break
            above = 0
            for k in range(count):
                if ends[k] > at:
                    if starts[k] < at + size[i]:
                        at = ends[k]
                        settled = False
                    else:
                        starts[above] = starts[k]
                        ends[above] = ends[k]
                        above += 1
            count = above
        offset[i] = at
        height = max(height, at + size[i])
        if height > most:
            break
    return height
