"""The block map: segments, and the blocks inside them, as they lay after one event. Also the reserved memory that could
not be used then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer, DriverAction
from memsim.timeline.lifetimes import Lifetimes


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Segments (arrays of length m) and blocks (length b), both by address. Free memory between two blocks of a segment
    is one free block.

    A segment of expandable memory is a run of mapped pages.
    """

    segment_address: NDArray[np.int64]  # [m]
    segment_bytes: NDArray[np.int64]  # [m]
    address: NDArray[np.int64]  # [b]
    bytes: NDArray[np.int64]  # [b]
    segment: NDArray[np.int64]  # [b] index of the segment
    storage: NDArray[np.int64]  # [b] the storage it serves, -1 for a free block
    waiting: NDArray[np.bool_]  # [b] freed, but waiting for another stream

    @property
    def free(self) -> NDArray[np.bool_]:
        """[b] True for a free block."""
        return self.storage < 0


@dataclass(frozen=True)
class Fragmentation:
    """Reserved bytes that served nothing at one event: reserved - allocated = cached_segments + free_in_used_segments +
    waiting.
    """

    event: int
    reserved: int
    allocated: int
    cached_segments: int  # bytes of segments without any block in use, which empty_cache() would return
    # Bytes of free blocks beside blocks in use. They can serve smaller requests, but cannot be returned to the driver.
    free_in_used_segments: int
    waiting: int  # bytes of blocks that were freed but wait for another stream
    largest_free: int  # bytes of the largest free block: a larger request needs a new segment
    segments: int
    free_segments: int
    free_blocks: int


def block_map(answer: Answer, lives: Lifetimes, event: int) -> BlockMap:
    """Returns the block map just after `event` (0 … processed-1)."""
    seg_address, seg_bytes = _segments(answer, event)
    active = lives.active(event)
    active = active[lives.block[active] > 0]
    active = active[np.argsort(lives.address[active], kind="stable")]
    start, size = lives.address[active], lives.block[active]
    home = np.searchsorted(seg_address, start, side="right") - 1
    # A hole lies between the end of each block (or the start of its segment) and the next block (or the segment's end).
    edges = np.concatenate([seg_address, start + size])
    edge_home = np.concatenate([np.arange(len(seg_address)), home])
    following = np.searchsorted(start, edges, side="left")
    next_start = np.concatenate([start, [np.iinfo(np.int64).max]])[following]
    hole = (
        np.minimum(next_start, (seg_address + seg_bytes)[edge_home]) - edges
        if len(seg_address)
        else np.zeros(0, np.int64)
    )
    keep = np.flatnonzero(hole > 0)
    address = np.concatenate([start, edges[keep]])
    order = np.argsort(address, kind="stable")
    storage = np.concatenate([active, np.full(len(keep), -1, np.int64)])[order]
    return BlockMap(
        segment_address=seg_address,
        segment_bytes=seg_bytes,
        address=address[order],
        bytes=np.concatenate([size, hole[keep]])[order],
        segment=np.concatenate([home, edge_home[keep]])[order].astype(np.int64),
        storage=storage,
        waiting=(storage >= 0) & (lives.died[storage] <= event) if len(active) else np.zeros(len(order), np.bool_),
    )


def _segments(answer: Answer, event: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns addresses and bytes of the memory held from the driver just after `event`, by address."""
    seen = answer.driver_event <= event
    action, address, size = answer.driver_action[seen], answer.driver_address[seen], answer.driver_bytes[seen]
    # Ordinary segments are freed whole, so the last call at an address decides; neighbours are never one segment.
    whole = np.flatnonzero((action == DriverAction.SEGMENT_ALLOC) | (action == DriverAction.SEGMENT_FREE))
    _, last = np.unique(address[whole][::-1], return_index=True)
    last = whole[::-1][last]
    last = last[action[last] == DriverAction.SEGMENT_ALLOC]
    # Expandable memory is mapped and unmapped in pieces of any size. The mapped runs are where +1 for maps and -1 for
    # unmaps add up to one.
    pages = np.flatnonzero((action == DriverAction.SEGMENT_MAP) | (action == DriverAction.SEGMENT_UNMAP))
    sign = np.where(action[pages] == DriverAction.SEGMENT_MAP, 1, -1)
    points, inverse = np.unique(np.concatenate([address[pages], address[pages] + size[pages]]), return_inverse=True)
    change = np.zeros(len(points), np.int64)
    np.add.at(change, inverse, np.concatenate([sign, -sign]))
    mapped = np.cumsum(change) > 0
    edge = np.diff(np.concatenate([[0], mapped.astype(np.int8)]))
    run_start, run_stop = points[edge == 1], points[edge == -1]
    starts = np.concatenate([address[last], run_start])
    sizes = np.concatenate([size[last], run_stop - run_start])
    order = np.argsort(starts, kind="stable")
    return starts[order], sizes[order]


def fragmentation(answer: Answer, blocks: BlockMap, event: int) -> Fragmentation:
    """Returns how the reserved memory that `blocks` shows at `event` fails to be allocated."""
    free = blocks.bytes[blocks.free]
    used_segment = np.zeros(len(blocks.segment_bytes), np.bool_)
    homes = blocks.segment[~blocks.free]
    used_segment[homes[homes >= 0]] = True  # a recording of totals alone names no segments
    in_used = int(free[used_segment[blocks.segment[blocks.free]]].sum())
    return Fragmentation(
        event=event,
        reserved=int(answer.reserved[event]),
        allocated=int(answer.allocated[event]),
        cached_segments=int(blocks.segment_bytes[~used_segment].sum()),
        free_in_used_segments=in_used,
        waiting=int(blocks.bytes[blocks.waiting].sum()),
        largest_free=int(free.max()) if len(free) else 0,
        segments=len(blocks.segment_bytes),
        free_segments=int((~used_segment).sum()),
        free_blocks=len(free),
    )
