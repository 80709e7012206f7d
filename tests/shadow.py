"""The shadow validator: holds the allocator to what must be true of any allocator, at every operation, without its
code.

`Shadow` believes nothing but the answers. `structure` reads the arena's blocks, in plain Python, and checks how they
lie.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from memsim.allocator import Answer, DriverAction
from memsim.allocator.compiled import arena
from memsim.tape import Action, Tape


class Shadow:
    """Keeps its own account of segments and live blocks, event by event."""

    def __init__(self, tape: Tape, answer: Answer) -> None:
        self.tape, self.answer = tape, answer
        # what the driver gave: first address → bytes; mapped ranges one for each page-wise piece
        self.ranges: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.live: dict[int, tuple[int, int, int]] = {}  # storage → address, block, bytes
        self.waiting: list[tuple[int, int, int]] = []  # freed, but perhaps not by every stream
        self.users: dict[int, set[int]] = {}
        self.calls = 0

    def driver(self, event: int) -> None:
        """Takes the driver calls of an event into account."""
        answer = self.answer
        while self.calls < len(answer.driver_event) and answer.driver_event[self.calls] == event:
            action, address, size = (
                int(column[self.calls]) for column in (answer.driver_action, answer.driver_address, answer.driver_bytes)
            )
            assert size > 0
            if action == DriverAction.SEGMENT_ALLOC:
                assert not any(
                    start < address + size and address < start + length
                    for start, length in (self.ranges | self.mapped).items()
                )
                self.ranges[address] = size
            elif action == DriverAction.SEGMENT_FREE:
                assert self.ranges.pop(address) == size
            elif action == DriverAction.SEGMENT_MAP:
                assert not any(
                    start < address + size and address < start + length
                    for start, length in (self.ranges | self.mapped).items()
                )
                self.mapped[address] = size
            else:
                self._unmap(address, size)
            self.calls += 1

    def _unmap(self, address: int, size: int) -> None:
        gone = 0
        for start, length in list(self.mapped.items()):
            low, high = max(start, address), min(start + length, address + size)
            if low < high:
                del self.mapped[start]
                gone += high - low
                if start < low:
                    self.mapped[start] = low - start
                if high < start + length:
                    self.mapped[high] = start + length - high
        assert gone == size, "what is unmapped was mapped"

    def check(self, event: int) -> None:
        """Applies an event and checks everything that is true after it."""
        tape, answer = self.tape, self.answer
        self.driver(event)
        action, storage = int(tape.action[event]), int(tape.storage[event])
        address, block = int(answer.address[event]), int(answer.block[event])
        if action == Action.ALLOC and address > 0:
            assert block >= int(tape.bytes[event]) > 0
            assert address % 512 == 0 and block % 512 == 0
            self.live[storage] = address, block, int(tape.bytes[event])
            self.users[storage] = set()
        elif action == Action.FREE and storage in self.live:
            assert self.live[storage][:2] == (address, block)
            freed = self.live.pop(storage)
            if self.users[storage]:
                self.waiting.append(freed)
        elif action == Action.RECORD_STREAM and storage in self.live:
            self.users[storage].add(int(tape.stream[event]))
        if action in (Action.ALLOC, Action.EMPTY_CACHE) and int(tape.bytes[event]) + (action == Action.EMPTY_CACHE) > 0:
            self.waiting = []  # events complete at once
        held = list(self.live.values())
        assert int(answer.allocated[event]) == sum(size for _, size, _ in held)
        assert int(answer.reserved[event]) == sum(self.ranges.values()) + sum(self.mapped.values())
        assert int(answer.segments[event]) == len(self.ranges)
        # A use on the block's own stream is no use, so what waits is at least nothing and at most what was freed with
        # users.
        least = int(answer.allocated[event])
        assert least <= int(answer.active[event]) <= least + sum(size for _, size, _ in self.waiting)
        self._places(held)

    def _places(self, held: list[tuple[int, int, int]]) -> None:
        """No two live blocks overlap, and each lies in one segment, or in pages that are all mapped."""
        held = sorted(held)
        for (address, size, _), (following, _, _) in pairwise(held):
            assert address + size <= following
        runs: list[list[int]] = []
        for start, size in sorted(self.mapped.items()):
            if runs and runs[-1][1] == start:
                runs[-1][1] += size
            else:
                runs.append([start, start + size])
        homes = [(start, start + size) for start, size in self.ranges.items()] + [(low, high) for low, high in runs]
        for address, size, _ in held:
            assert any(low <= address and address + size <= high for low, high in homes)


def structure(heap: arena.ARRAY) -> list[list[int]]:
    """Checks how the arena's blocks lie, and returns those of each segment or reservation, in order of address.

    Links are mutual, blocks tile their segment, free neighbours are merged, each pool's set holds exactly its free
    mapped blocks, in order.
    """
    spare: set[int] = set()
    at = int(heap[arena.SPARE])
    while at:
        spare.add(at)
        at = int(heap[at + arena.NEXT])
    blocks = [
        b for b in range(int(heap[arena.FIRST_BLOCK]), int(heap[arena.NEXT_BLOCK]), arena.BLOCK_WORDS) if b not in spare
    ]
    segments: list[list[int]] = []
    for block in blocks:
        before = int(heap[block + arena.PREV])
        if before:
            assert int(heap[before + arena.NEXT]) == block
            continue
        run = [block]
        while after := int(heap[run[-1] + arena.NEXT]):
            assert int(heap[after + arena.PREV]) == run[-1]
            assert int(heap[after + arena.ADDRESS]) == int(heap[run[-1] + arena.ADDRESS] + heap[run[-1] + arena.SIZE])
            metas = int(heap[run[-1] + arena.META]), int(heap[after + arena.META])
            assert metas[0] >> 3 == metas[1] >> 3, "a segment has one pool"
            assert metas[0] != metas[1] or metas[0] & arena.BUSY, "free neighbours are merged"
            run.append(after)
        segments.append(run)
    assert sorted(block for run in segments for block in run) == blocks
    free = {block for block in blocks if not int(heap[block + arena.META]) & (arena.BUSY | arena.IS_UNMAPPED)}
    listed = [
        block
        for number in range(2 * int(heap[arena.STREAMS]))
        for block in _pool(heap, int(heap[arena.POOLS]) + number * arena.POOL_WORDS)
    ]
    assert sorted(listed) == sorted(free)
    return segments


def _pool(heap: arena.ARRAY, pool: int) -> list[int]:
    """The free blocks of a pool, in order; its bits and its list of unmapped blocks are checked on the way."""
    found: list[int] = []
    classes = np.flatnonzero(heap[pool : pool + arena.CLASSES]).tolist()
    for number in classes:
        found.extend(_in_order(heap, int(heap[pool + number])))
    words = heap[pool + arena.CLASS_BITS : pool + arena.CLASS_SUMMARY].astype("<i8")
    assert np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist() == classes
    assert np.flatnonzero(words).tolist() == [
        bit for bit in range(64) if int(heap[pool + arena.CLASS_SUMMARY]) >> bit & 1
    ]
    keys = [(int(heap[block + arena.SIZE]), int(heap[block + arena.ORDER])) for block in found]
    assert keys == sorted(set(keys))
    assert all(int(heap[block + arena.META]) >> 3 == pool for block in found)
    at, last = int(heap[pool + arena.UNMAPPED_HEAD]), 0
    while at:
        assert int(heap[at + arena.META]) & arena.IS_UNMAPPED and int(heap[at + arena.ADDRESS]) > last
        last, at = int(heap[at + arena.ADDRESS]), int(heap[at + arena.RIGHT])
    return found


def _in_order(heap: arena.ARRAY, block: int) -> list[int]:
    if not block:
        return []
    return [*_in_order(heap, int(heap[block + arena.LEFT])), block, *_in_order(heap, int(heap[block + arena.RIGHT]))]
