"""What a pickle would build, found out before it is built: its depth, its sizes and its work, byte by byte.

Python's unpickler builds whatever it is told to: tuples nested so deep that hashing one overflows the stack, containers
that hold each other twice over, a memo of any length. Here its operations are followed with a number for each container
in place of the container. What is not refused is plain, nested a few levels deep, no part of itself, and not much
larger than its file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.compiled.bits import items
from memsim.allocator.compiled.jit import njit

DEPTH = 64  # levels of containers; PyTorch's snapshots have seven
LONGEST = 1 << 26  # bytes of one string or number
KEY_BYTES, KEY_DIGITS = 8, 18  # of a whole number that may be a key: those of more can be made to collide
# What is told of a pickle: it is plain; it is cut off or broken; it names something to call, which the unpickler
# refuses by name; or what is wrong with it.
PLAIN, BROKEN, NAMES, BUILDS, DEEP, LARGE, SHARED, LONG, KEY, MEMO = range(10)
REASONS = {
    BUILDS: "builds an object; only plain containers, strings and numbers are loaded",
    DEEP: f"nests containers more than {DEPTH} levels deep",
    LARGE: "would take far more memory than a file of its size holds",
    SHARED: "has a container that holds itself, or holds others so often that walking through it would not end",
    LONG: f"has a string or a number of more than {LONGEST >> 20} MiB",
    KEY: "has a key that is no string or number",
    MEMO: "remembers a value under a number far beyond those in use",
}
OPEN, FULL = -1, -2  # nothing wrong so far; there is no room to go on
FIRST_ROOM = 1 << 16  # on the stack, and for marks, containers, and what is remembered
NEWLINE = 10
SCALAR, UNHASHABLE = 0, -1  # on the stack, in place of what is no container; a container is a number from 1 on
LIST, DICT, SET, TUPLE = 1, 2, 3, 4
# How an operation's argument is written: none, so many bytes, a length of so many bytes and then as many, or a line.
NOTHING, FIXED, COUNTED, LINE = range(4)
(
    OTHER,
    VALUE,
    INTEGER,
    BYTES,
    EMPTY,
    FROM_MARK,
    FEW,
    ADD_ONE,
    ADD_MANY,
    GET,
    PUT,
    MEMOIZE,
    MARK,
    POP,
    POP_MARK,
    DUP,
    STOP,
    SKIP,
    NAME,
    OBJECT,
) = range(20)


def _table() -> NDArray[np.int64]:
    """[256, 4] of each operation: what it does, how its argument is written, of how many bytes, and of which kind its
    container is.
    """
    rows = np.zeros((256, 4), np.int64)
    for names, does, written, count, kind in (
        (b"N\x88\x89", VALUE, NOTHING, 0, 0),  # None, True, False
        (b"K", VALUE, FIXED, 1, 0),
        (b"M", VALUE, FIXED, 2, 0),
        (b"J", VALUE, FIXED, 4, 0),
        (b"G", VALUE, FIXED, 8, 0),
        (b"U\x8cC", VALUE, COUNTED, 1, 0),  # strings and bytes
        (b"TXB", VALUE, COUNTED, 4, 0),
        (b"\x8d\x8e", VALUE, COUNTED, 8, 0),
        (b"SVF", VALUE, LINE, 0, 0),
        (b"\x96", BYTES, COUNTED, 8, 0),  # a bytearray
        (b"\x8a", INTEGER, COUNTED, 1, 0),
        (b"\x8b", INTEGER, COUNTED, 4, 0),
        (b"IL", INTEGER, LINE, 0, 0),
        (b"]", EMPTY, NOTHING, 0, LIST),
        (b"}", EMPTY, NOTHING, 0, DICT),
        (b"\x8f", EMPTY, NOTHING, 0, SET),
        (b")", EMPTY, NOTHING, 0, TUPLE),
        (b"l", FROM_MARK, NOTHING, 0, LIST),
        (b"d", FROM_MARK, NOTHING, 0, DICT),
        (b"\x91", FROM_MARK, NOTHING, 0, SET),  # a frozenset
        (b"t", FROM_MARK, NOTHING, 0, TUPLE),
        (b"\x85", FEW, NOTHING, 1, TUPLE),
        (b"\x86", FEW, NOTHING, 2, TUPLE),
        (b"\x87", FEW, NOTHING, 3, TUPLE),
        (b"a", ADD_ONE, NOTHING, 1, LIST),
        (b"s", ADD_ONE, NOTHING, 2, DICT),
        (b"e", ADD_MANY, NOTHING, 0, LIST),
        (b"u", ADD_MANY, NOTHING, 0, DICT),
        (b"\x90", ADD_MANY, NOTHING, 0, SET),
        (b"g", GET, LINE, 0, 0),
        (b"h", GET, FIXED, 1, 0),
        (b"j", GET, FIXED, 4, 0),
        (b"p", PUT, LINE, 0, 0),
        (b"q", PUT, FIXED, 1, 0),
        (b"r", PUT, FIXED, 4, 0),
        (b"\x94", MEMOIZE, NOTHING, 0, 0),
        (b"(", MARK, NOTHING, 0, 0),
        (b"0", POP, NOTHING, 0, 0),
        (b"1", POP_MARK, NOTHING, 0, 0),
        (b"2", DUP, NOTHING, 0, 0),
        (b".", STOP, NOTHING, 0, 0),
        (b"\x80", SKIP, FIXED, 1, 0),  # the protocol
        (b"\x95", SKIP, FIXED, 8, 0),  # a frame
        (b"c\x93iPQ\x82\x83\x84", NAME, NOTHING, 0, 0),  # globals, and objects outside of the file
        (b"Rbo\x81\x92\x97\x98", OBJECT, NOTHING, 0, 0),
    ):
        for name in names:
            rows[name] = does, written, count, kind
    return rows


TABLE = _table()
# Bytes that each kind of container takes, and then what each of its items adds: CPython's, rounded up.
COSTS = np.array([0, 72, 80, 216, 56, 0, 12, 40, 64, 8])


@njit(cache=True)
def _number(data, start, count):
    """The little-endian number in `count` bytes; 2^62 where it is larger."""
    value = 0
    for at in range(min(count, 7)):
        value |= int(data[start + at]) << (8 * at)
    if count == 8 and data[start + 7] != 0:
        return 1 << 62
    return value


@njit(cache=True)
def _digits(data, start, stop):
    """The number in decimal digits; -1 where it is something else."""
    if stop <= start or stop - start > 9:
        return -1
    value = 0
    for at in range(start, stop):
        digit = int(data[at]) - 48
        if digit < 0 or digit > 9:
            return -1
        value = 10 * value + digit
    return value


@njit(cache=True)
def _put_in(boxes, weights, stack, first, top, target, kind):
    """Puts stack[first:top] into the container: its reason to be refused, or OPEN."""
    for at in range(first, top):
        value = stack[at]
        if value != SCALAR and (kind == SET or (kind == DICT and (at - first) % 2 == 0)):
            return KEY
        weights[target] += 1
        if value > 0:
            boxes[3 * value + 2] = 1
            boxes[3 * target] = max(boxes[3 * target], boxes[3 * value] + 1)
            weights[target] += weights[value]
    # what was put somewhere does not change any more, so that nothing can be part of itself
    if boxes[3 * target + 2] and first < top:
        return SHARED
    return DEEP if boxes[3 * target] > DEPTH else OPEN


@njit(cache=True)
def _argument(data, at, n, written, count, digits):
    """(where the argument at `at` ends, or -1; its number; its length) of an operation."""
    if written == NOTHING:
        return at, 0, 0
    if written == LINE:
        start = at
        while at < n and data[at] != NEWLINE:
            at += 1
        return (at + 1 if at < n else -1), (_digits(data, start, at) if digits else 0), at - start
    if at + count > n:
        return -1, 0, 0
    number = _number(data, at, count)
    if written == FIXED:
        return at + count, number, 0
    return (at + count + number if number <= n - at - count else -1), 0, number


@njit(cache=True)
def _follow(pickle, tables, costs, stacks, places, memos, containers, floats, most_bytes, most_weight):
    """As `follow`, with zeros to work in: for the stack, the marks, the memo; for depth, kind and seal of each
    container, and for their weights. FULL where they are too few.
    """
    data, table, cost_of, stack = items(pickle), items(tables), items(costs), items(stacks)
    marks, memo, boxes, weights = items(places), items(memos), items(containers), items(floats)
    n, room = len(pickle), len(memos)
    at, top, marked, made, remembered, cost, place, reason = 0, 0, 0, 0, 0, 0, 0, OPEN
    while reason == OPEN:
        place = at
        if at >= n:
            reason = BROKEN
            break
        row = 4 * data[at]
        does, written, count, kind = table[row], table[row + 1], table[row + 2], table[row + 3]
        at, number, length = _argument(data, at + 1, n, written, count, does == GET or does == PUT)
        if length > LONGEST:
            reason = LONG
            break
        if at < 0 or (does == SKIP and number > n - at):  # a frame that ends behind the file
            reason = BROKEN
            break
        # the place of the first value that is taken off the stack, which must lie above the last mark
        fence = marks[marked - 1] if marked else 0
        first = top - count if does == FEW or does == ADD_ONE else top
        if does == FROM_MARK or does == ADD_MANY or does == POP_MARK:
            if marked == 0:
                reason = BROKEN
                break
            marked -= 1
            first, fence = fence, (marks[marked - 1] if marked else 0)
        pushed, value = False, SCALAR
        if does == GET:
            if number < 0 or number >= room or memo[number] == 0:
                reason = BROKEN
                break
            pushed, value = True, memo[number] - 2
        elif does == PUT or does == MEMOIZE:
            number = remembered if does == MEMOIZE else number
            if top <= fence:
                reason = BROKEN
                break
            if number < 0 or number > remembered + 1:
                reason = MEMO
                break
            if number >= room:
                reason = FULL
                break
            remembered += 1 if memo[number] == 0 else 0
            memo[number] = stack[top - 1] + 2
            cost += 16
        elif does == VALUE:
            pushed = True
            cost += 56 + 4 * length
        elif does == INTEGER:
            pushed = True
            cost += 40 + 2 * length
            value = SCALAR if length <= (KEY_BYTES if written == COUNTED else KEY_DIGITS) else UNHASHABLE
        elif does == BYTES:
            pushed, value = True, UNHASHABLE
            cost += 64 + length
        elif does == EMPTY or does == FROM_MARK or does == FEW or does == ADD_ONE or does == ADD_MANY:
            adds = does == ADD_ONE or does == ADD_MANY  # to the container below
            if first < fence + (1 if adds else 0) or (kind == DICT and (top - first) % 2):
                reason = BROKEN
                break
            if adds:
                target = stack[first - 1]
                if target <= 0 or boxes[3 * target + 1] != kind:
                    reason = BUILDS
                    break
            else:
                made += 1
                target = made
                if made == room:
                    reason = FULL
                    break
                boxes[3 * target], boxes[3 * target + 1], weights[target] = 1, kind, 1
                cost += cost_of[kind]
                pushed, value = True, target
            reason = _put_in(boxes, weights, stack, first, top, target, kind)
            if weights[target] > most_weight:
                reason = SHARED
            cost += cost_of[5 + kind] * (top - first)
            top = first
        elif does == MARK:
            if marked == room:
                reason = FULL
                break
            marks[marked] = top
            marked += 1
            cost += 8
        elif does == POP and marked and fence == top:
            marked -= 1
        elif does == POP_MARK:
            top = first
        elif does == POP or does == DUP or does == STOP:
            if top <= fence:
                reason = BROKEN
            elif does == POP:
                top -= 1
            elif does == DUP:
                pushed, value = True, stack[top - 1]
            else:
                reason = PLAIN
        elif does != SKIP:
            reason = NAMES if does == NAME else BUILDS if does == OBJECT else BROKEN
        if pushed and top == room:
            reason = FULL
        elif pushed:
            stack[top] = value
            top += 1
            cost += 8
        if cost > most_bytes and reason == OPEN:
            reason = LARGE
    return reason, place, cost


def follow(data: NDArray[np.uint8], most_bytes: int, most_values: float) -> tuple[int, int, int]:
    """Follows the operations of a pickle: (PLAIN, or why not; the last one's place; bytes that it would build).

    most_bytes: that it may build. most_values: that a walk through any of its containers may meet, those that are
    shared as often as they are reached.
    """
    room = FIRST_ROOM
    while True:
        reason, place, cost = _follow(
            data,
            TABLE.ravel(),
            COSTS,
            np.zeros(room, np.int64),
            np.zeros(room, np.int64),
            np.zeros(room, np.int64),
            np.zeros(3 * room, np.int64),
            np.zeros(room, np.float64),
            most_bytes,
            most_values,
        )
        if reason != FULL:
            return int(reason), int(place), int(cost)
        room *= 4  # and from the beginning, which costs a third more in all
