"""Requests that bring an empty allocator into the state in which a recording began: segments, live blocks, and free
blocks between them.

They are made for default settings (the Trace says how many they are, and `allocate` serves them so). Each segment is
filled from front to back, including its gaps, and then the gaps are freed. Gaps of expandable memory without pages
behind them are returned to the driver on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from memsim.errors import InputError
from memsim.tape import Action

SMALL, SMALL_SEGMENT, LARGE_SEGMENT, UNIT = 1 << 20, 2 << 20, 20 << 20, 512
FARTHEST = 64 << 30  # bytes between pages of one reservation; what lies farther apart is not brought into its place
MOST_PIECES = 1 << 19  # of 1 MiB: half a TiB of small segments
Row = tuple[int, int, int, int]  # action, storage, bytes, stream


@dataclass(frozen=True)
class Live:
    """A block in use."""

    address: int
    bytes: int  # requested
    block: int  # bytes of the block; it may be larger


@dataclass(frozen=True)
class Segment:
    """A segment, or a run of mapped pages of expandable memory, and the blocks in it that are in use, by address."""

    address: int
    bytes: int
    stream: int
    small: bool
    live: tuple[Live, ...]
    expandable: bool = False


@dataclass(eq=False)
class Rebuilt:
    """The requests, and what is alive after them."""

    rows: list[Row] = field(default_factory=list)
    live: dict[int, tuple[int, int]] = field(default_factory=dict)  # address → storage, bytes
    given: list[int] = field(default_factory=list)  # addresses that the driver gives, in order
    # reservation → its pool: the stream, and true for the small pool
    expandable: dict[int, tuple[int, bool]] = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)  # reservation → bytes mapped in it
    reserved: int = 0  # bytes held from the driver
    storages: int = 0

    def alloc(self, size: int, stream: int) -> int:
        """Adds an ALLOC and returns its storage."""
        self.rows.append((int(Action.ALLOC), self.storages, size, stream))
        self.storages += 1
        return self.storages - 1

    def free(self, storage: int, size: int) -> None:
        """Adds a FREE."""
        self.rows.append((int(Action.FREE), storage, size, 0))


@dataclass(frozen=True)
class _Piece:
    """Part of a segment: a gap, pages that are not there, or a block in use. With a block go the bytes behind it that
    are too few to be requested by themselves.
    """

    bytes: int
    live: Live | None = None
    mapped: bool = True


def rebuild(segments: Iterable[Segment]) -> Rebuilt:
    """The requests for these segments, whose order by address stands for that of their making. Raises InputError where
    they would be too many.
    """
    made = Rebuilt()
    held: list[tuple[int, int]] = []  # storages of gaps, and bytes
    absent: list[tuple[int, int]] = []
    larger: list[tuple[int, Live, int, Segment]] = []  # storage of the place, block, bytes of the place
    pools: dict[tuple[int, bool], int] = {}  # where the expandable memory of a pool ends so far
    bases: dict[tuple[int, bool], int] = {}  # and where its first reservation begins
    in_order = sorted(segments, key=lambda segment: segment.address)
    _check_parts(in_order)
    for segment in in_order:
        pool = segment.stream, segment.small
        made.reserved += segment.bytes
        apart = segment.address - pools[pool] if segment.expandable and pool in pools else FARTHEST + 1
        pieces = _pieces(segment)
        if apart <= FARTHEST:
            pieces = [*_gap(apart, segment.small, mapped=False), *pieces]
        else:
            made.given.append(segment.address)
        if segment.expandable:
            pools[pool] = segment.address + segment.bytes
            base = bases.setdefault(pool, segment.address)
            made.expandable[base] = pool
            made.mapped[base] = made.mapped.get(base, 0) + segment.bytes
        elif not segment.small:  # the whole first: a first block alone could get a segment of another size
            made.free(made.alloc(segment.bytes, segment.stream), segment.bytes)
        for piece in pieces:
            exact = piece.live is not None and piece.bytes == _rounded(piece.live.bytes)
            asked = piece.live.bytes if exact and piece.live else piece.bytes
            storage = made.alloc(asked, segment.stream)
            if piece.live is None:
                (held if piece.mapped else absent).append((storage, piece.bytes))
            elif exact:
                made.live[piece.live.address] = storage, asked
            else:
                larger.append((storage, piece.live, piece.bytes, segment))
    # No other free place is as large, so the block returns to its own.
    for storage, live, size, segment in reversed(larger):
        # bytes that stay with the block, or become free by themselves
        spare = size - live.block if segment.small or segment.expandable else SMALL
        kept = live.bytes if size - _rounded(live.bytes) <= spare else live.block
        made.free(storage, size)
        made.live[live.address] = made.alloc(kept, segment.stream), kept
    for storage, size in absent:
        made.free(storage, size)
    if absent:
        made.rows.append((int(Action.EMPTY_CACHE), -1, 0, 0))
    for storage, size in held:  # only now: blocks of a later segment would go into them
        made.free(storage, size)
    return made


def _check_parts(segments: list[Segment]) -> None:
    """Raises InputError where small segments, and the address space between their pages, would be too many requests."""
    count, ends = 0, dict[int, int]()  # where the expandable small memory of a stream ends so far
    for segment in segments:
        if not segment.small:
            continue
        count += segment.bytes // SMALL
        if segment.expandable:
            apart = segment.address - ends.get(segment.stream, segment.address)
            count += max(apart, 0) // SMALL if apart <= FARTHEST else 0
            ends[segment.stream] = segment.address + segment.bytes
        if count > MOST_PIECES:
            raise InputError(
                f"the segment at address {segment.address}: the small segments that are held at the start are in over "
                f"{MOST_PIECES} parts of 1 MiB, which is not rebuilt"
            )


def _rounded(size: int) -> int:
    """Bytes of the block for a request under default settings."""
    return max(UNIT, -(-size // UNIT) * UNIT)


def _pieces(segment: Segment) -> list[_Piece]:
    """Returns the pieces of a segment from front to back.

    A gap of at most 1 MiB behind a live block of a large segment belongs to that block: the allocator does not split
    off so little. In expandable memory it does, and the gap is free, but cannot be requested by itself.
    """
    pieces: list[_Piece] = []
    at, end = segment.address, segment.address + segment.bytes
    for place, live in enumerate(segment.live):
        pieces += _gap(live.address - at, segment.small)
        following = segment.live[place + 1].address if place + 1 < len(segment.live) else end
        at = live.address + live.block
        if not segment.small and 0 < following - at <= SMALL:
            at = following
        pieces.append(_Piece(at - live.address, live))
    return pieces + _gap(end - at, segment.small)


def _gap(size: int, small: bool, mapped: bool = True) -> list[_Piece]:
    step = SMALL if small else max(size, 1)
    return [_Piece(min(step, size - offset), mapped=mapped) for offset in range(0, size, step)]
