"""The driver's addresses on Linux, against a plain model of the same rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from memsim.allocator.compiled import arena, linux_addresses

PAGE = 2 << 20
CHUNK = 32 << 20


class Plain:
    """Chunks by base, and within each the pages that are taken."""

    def __init__(self) -> None:
        self.chunks: dict[int, int] = {}
        self.taken: dict[int, int] = {}

    def holes(self) -> list[tuple[int, int]]:
        """Free ranges of every chunk, lowest first; ranges of two chunks are never one."""
        found = []
        for base, size in sorted(self.chunks.items()):
            at = base
            for start in sorted(a for a in self.taken if base <= a < base + size):
                if start > at:
                    found.append((at, start - at))
                at = start + self.taken[start]
            if at < base + size:
                found.append((at, base + size - at))
        return found

    def take(self, size: int) -> int:
        address = next((at for at, room in self.holes() if room >= size), None)
        if address is None:
            chunk = -(-size // CHUNK) * CHUNK
            top = arena.ABOVE_CHUNKS
            address = None
            for base in sorted(self.chunks, reverse=True):
                if top - (base + self.chunks[base]) >= chunk:
                    break
                top = base
            address = top - chunk
            self.chunks[address] = chunk
        self.taken[address] = size
        return address

    def give(self, address: int) -> None:
        del self.taken[address]
        for base, size in list(self.chunks.items()):
            if not any(base <= a < base + size for a in self.taken):
                del self.chunks[base]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.one_of(st.integers(1, 40), st.integers(-30, -1)), max_size=80))
def test_addresses_follow_the_rule(steps: list[int]) -> None:
    """A positive number takes so many pages, a negative one gives back one of what is taken."""
    heap, plain = arena.blank(1, 0, 64, ranges=256), Plain()
    for step in steps:
        if step > 0:
            address = int(linux_addresses.take(heap, step * PAGE))
            assert address == plain.take(step * PAGE)
        elif plain.taken:
            address = sorted(plain.taken)[step % len(plain.taken)]
            linux_addresses.give(heap, address, plain.taken[address])
            plain.give(address)


def test_a_small_segment_leaves_the_rest_of_its_chunk_to_the_next() -> None:
    heap = arena.blank(1, 0, 64, ranges=256)
    first, second = (int(linux_addresses.take(heap, PAGE)) for _ in range(2))
    assert first == arena.ABOVE_CHUNKS - CHUNK
    assert second == first + PAGE
    assert int(linux_addresses.take(heap, CHUNK)) == first - CHUNK
    assert np.count_nonzero(heap[[arena.GAPS]]) == 0
