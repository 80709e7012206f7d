"""PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`) → Trace. The state at their start is rebuilt
backwards from the final segments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.settings import Settings
from memsim.errors import InputError, brief, show
from memsim.traces.columns import MOST_ADDRESS, MOST_HANDLE, MOST_HELD, MOST_SIZE, whole
from memsim.traces.events import memory_of, trace_of_events
from memsim.traces.frames import stacks_of
from memsim.traces.pickles import Watch, load_plain
from memsim.traces.rebuild import LARGE_SEGMENT, SMALL, SMALL_SEGMENT, Live, Segment
from memsim.traces.recorder import (
    ACTIONS,
    ALLOC,
    FREE_COMPLETED,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    Recording,
)
from memsim.traces.trace import Trace

CODES = {
    **{name: code for code, name in enumerate(ACTIONS)},
    "free": FREE_COMPLETED,
    "user_defined": ACTIONS.index("snapshot"),
}
Rows = list[dict[str, Any]]
Ints = NDArray[np.int64]
MOST_DEVICES = 64


def load_snapshot(path: Path, device_memory: int | None = None, watch: Watch | None = None) -> Trace:
    """The events of the device that has most; see load_snapshots."""
    return max(load_snapshots(path, device_memory, watch), key=lambda trace: len(trace.tape) - trace.prefix)


def load_snapshots(path: Path, device_memory: int | None = None, watch: Watch | None = None) -> tuple[Trace, ...]:
    """The events of each device that has any; device_memory is the bytes of each, where they are known. Raises
    InputError, naming the file and the key.
    """
    data = load_plain(path, watch)
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("device_traces"), list)
        or not isinstance(data.get("segments"), list)
    ):
        raise InputError(f"{path}: is not a memory snapshot of PyTorch, which has the keys segments and device_traces")
    traces: list[Rows] = data.pop("device_traces")
    if not all(isinstance(trace, list) for trace in traces):
        raise InputError(f"{path}: device_traces: holds something other than a list of events for each device")
    with_events = [device for device, rows in enumerate(traces) if rows]
    if len(with_events) > MOST_DEVICES:
        raise InputError(
            f"{path}: device_traces: {len(with_events)} devices have events; up to {MOST_DEVICES} are read"
        )
    recorded = {device: (_events(traces[device], path), stacks_of(traces[device])) for device in with_events}
    traces.clear()  # a million dicts
    text = _settings(data.get("allocator_settings"))
    try:
        settings = Settings.parse(text)
    except InputError as error:
        raise InputError(f"{path}: allocator_settings: {brief(str(error), 700)}") from None
    if not recorded:
        raise InputError(f"{path}: device_traces: is empty; record with torch.cuda.memory._record_memory_history()")
    made = []
    for device, (events, stacks) in recorded.items():
        initial = _initial(events, _segments(data["segments"], device, path), settings)
        memory = device_memory or memory_of(events, sum(segment.bytes for segment in initial))
        trace = trace_of_events(events, initial, str(path), "snapshot", text, device_memory=memory, stacks=stacks)
        made.append(replace(trace, device=device if len(recorded) > 1 else None))
    return tuple(made)


def _settings(found: object) -> str:
    """The setting string among what the snapshot notes of its settings; empty where there is none."""
    keys = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    texts = [found.get(key) for key in keys] if isinstance(found, Mapping) else []
    return next((text for text in texts if isinstance(text, str) and text), "")


def _events(rows: Rows, path: Path) -> Recording:
    """Returns the rows as columns. An out of memory has the device's free bytes for an address, as the recorder writes
    it. Raises InputError.
    """
    n, where = len(rows), f"{path}: event"
    for at, row in enumerate(rows):
        if type(row) is not dict:
            raise InputError(f"{where} {at}: {show(row)} is not a mapping of action, addr, size and stream")
        name = row.get("action")
        if type(name) is not str or name not in CODES:
            raise InputError(
                f"{where} {at}: {show(name)} is not an action of the allocator; valid are {', '.join(CODES)}"
            )
    action = np.fromiter((CODES[row["action"]] for row in rows), np.uint8, n)
    address = whole(rows, "addr", MOST_ADDRESS, where, default=0)
    failed = np.flatnonzero(action == OOM)
    for at in failed.tolist():
        free = rows[at].get("device_free")
        if type(free) is not int or not 0 <= free <= MOST_HELD:
            raise InputError(f"{where} {at}: device_free: {show(free)}; bytes from 0 to {MOST_HELD} are valid")
        address[at] = free
    size, stream = whole(rows, "size", MOST_SIZE, where), whole(rows, "stream", MOST_HANDLE, where)
    return Recording(action, address, size, stream, np.zeros(n, np.int32), ("trace",))


def _segments(rows: Rows, device: int, path: Path) -> Rows:
    """The device's segments, their numbers and blocks checked; each block is looked at once. Raises InputError."""
    for at, segment in enumerate(rows):
        if type(segment) is not dict:
            raise InputError(
                f"{path}: segment {at}: {show(segment)} is not a mapping of address, total_size and blocks"
            )
    kept = [segment for segment in rows if segment.get("device", 0) == device]
    where, seen = f"{path}: segment", set()
    for key, most in (("address", MOST_ADDRESS), ("total_size", MOST_HELD), ("stream", MOST_HANDLE)):
        whole(kept, key, most, where)
    for at, segment in enumerate(kept):
        blocks = segment.get("blocks")
        if type(segment.get("segment_type")) is not str:
            raise InputError(
                f"{where} {at}: segment_type: {show(segment.get('segment_type'))}; small or large is valid"
            )
        if type(blocks) is not list or id(blocks) in seen:
            what = "is the list of another segment" if type(blocks) is list else "is not a list of blocks"
            raise InputError(f"{where} {at}: blocks: {what}")
        seen.add(id(blocks))
        if not all(type(block) is dict and type(block.get("state")) is str for block in blocks):
            raise InputError(f"{where} {at}: blocks: holds something other than mappings with size and state")
        inside = f"{where} {at}: block"
        whole(blocks, "size", MOST_HELD, inside)
        whole(blocks, "requested_size", MOST_HELD, inside, default=0)
        whole(blocks, "address", MOST_ADDRESS, inside, default=0)
    return kept


def _initial(events: Recording, segments: Rows, settings: Settings) -> list[Segment]:
    """Returns the segments and live blocks before the first event: the events are run backwards from the end."""
    held = {
        int(s["address"]): (int(s["total_size"]), int(s["stream"]), s["segment_type"] == "small")
        for s in segments
        if not s.get("is_expandable")
    }
    live: dict[int, Live] = {}
    for segment in segments:
        at = int(segment["address"])
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                address = int(block.get("address", at))
                live[address] = Live(address, int(block.get("requested_size", block["size"])), int(block["size"]))
            at += int(block["size"])
    wanted = np.flatnonzero(np.isin(events.action, (ALLOC, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE)))[::-1]
    columns = (events.action[wanted], events.address[wanted], events.bytes[wanted], events.stream[wanted])
    for action, address, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if action == ALLOC:
            live.pop(address, None)
        elif action == FREE_COMPLETED:
            live[address] = Live(address, size, settings.rounded(size))
        elif action == SEGMENT_ALLOC:
            held.pop(address, None)
        else:
            held[address] = (size, stream, size == SMALL_SEGMENT)
    made = [Segment(address, size, stream, small, ()) for address, (size, stream, small) in held.items()]
    made = sorted(
        made + _mapped(events, [s for s in segments if s.get("is_expandable")]), key=lambda segment: segment.address
    )
    places = [segment.address for segment in made]
    inside: list[list[Live]] = [[] for _ in made]
    for address in sorted(live):
        at = bisect_right(places, address) - 1
        if at >= 0 and address < places[at] + made[at].bytes:
            inside[at].append(live[address])
    return _whole_blocks(
        events, [replace(segment, live=tuple(blocks)) for segment, blocks in zip(made, inside, strict=True)]
    )


def _whole_blocks(events: Recording, segments: list[Segment]) -> list[Segment]:
    """Returns the segments, with their blocks at whole size as far as the events tell it.

    A block of a large segment may be larger than its request, by up to 1 MiB that was too little to split off, and its
    free does not say so. But the first request that gets memory of the gap behind it, while it lives, gets the gap's
    first bytes.
    """
    allocs = np.flatnonzero(events.action == ALLOC)
    allocs = allocs[np.argsort(events.address[allocs], kind="stable")]
    places, n = events.address[allocs], len(events)
    frees = np.flatnonzero(events.action == FREE_COMPLETED)[::-1]
    ends = dict(zip(events.address[frees].tolist(), frees.tolist(), strict=True))  # the first free of each address

    def whole(live: Live, limit: int) -> Live:
        first, last = np.searchsorted(places, (live.address + live.block, limit))
        inside = allocs[first:last]
        inside = inside[inside < ends.get(live.address, n)]
        size = int(events.address[inside.min()]) - live.address if len(inside) else 0
        return replace(live, block=size) if live.block < size <= live.block + SMALL else live

    def settled(segment: Segment, following: int) -> Segment:
        limits = [live.address for live in segment.live[1:]] + [min(segment.address + segment.bytes, following)]
        return replace(
            segment,
            live=tuple(
                whole(live, limit) for live, limit in zip(segment.live, limits[: len(segment.live)], strict=True)
            ),
        )

    followings = ([segment.address for segment in segments] + [MOST_ADDRESS])[1:] if segments else []
    return [
        segment if segment.small or segment.expandable else settled(segment, following)
        for segment, following in zip(segments, followings, strict=True)
    ]


def _mapped(events: Recording, segments: Rows) -> list[Segment]:
    """Returns the runs of mapped pages before the first event: those at the end, without those that were mapped, and
    with those that were unmapped.

    Pages belong to the pool of the nearest mapping below, among the events or at the end.
    """
    changes = np.flatnonzero((events.action == SEGMENT_MAP) | (events.action == SEGMENT_UNMAP))
    if not len(changes) and not segments:
        return []
    ends = np.array([(int(s["address"]), int(s["total_size"])) for s in segments], np.int64).reshape(-1, 2)
    address, size = (
        np.concatenate(columns)
        for columns in ((ends[:, 0], events.address[changes]), (ends[:, 1], events.bytes[changes]))
    )
    sign = np.concatenate([np.ones(len(ends), np.int64), np.where(events.action[changes] == SEGMENT_MAP, -1, 1)])
    points, at = np.unique(np.concatenate([address, address + size]), return_inverse=True)
    change = np.zeros(len(points), np.int64)
    np.add.at(change, at, np.concatenate([sign, -sign]))
    edges = np.diff(np.concatenate([[0], np.cumsum(change) > 0]).astype(np.int8))
    owners = [(int(s["address"]), int(s["stream"]), s["segment_type"] == "small") for s in segments]
    owners += [
        (int(events.address[e]), int(events.stream[e]), int(events.bytes[e]) == SMALL_SEGMENT)
        for e in changes[events.action[changes] == SEGMENT_MAP]
    ]
    owners.sort()
    made: list[Segment] = []
    for start, stop in zip(points[edges == 1].tolist(), points[edges == -1].tolist(), strict=True):
        below = bisect_right(owners, (start, 1 << 63)) - 1
        _, stream, small = owners[below] if below >= 0 else (start, 0, (stop - start) % LARGE_SEGMENT != 0)
        made.append(Segment(start, stop - start, stream, small, (), expandable=True))
    return made
