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
from memsim.errors import InputError
from memsim.traces.events import memory_of, trace_of_events
from memsim.traces.frames import Stacks, stacks_of
from memsim.traces.pickles import Watch, load_plain
from memsim.traces.rebuild import LARGE_SEGMENT, SMALL, SMALL_SEGMENT, Live, Segment
from memsim.traces.recorder import (
    ACTIONS,
    ALLOC,
    FREE_COMPLETED,
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


def load_snapshot(path: Path, device_memory: int | None = None, watch: Watch | None = None) -> Trace:
    """The events of the device that has most; see load_snapshots."""
    return max(load_snapshots(path, device_memory, watch), key=lambda trace: len(trace.tape) - trace.prefix)


def load_snapshots(path: Path, device_memory: int | None = None, watch: Watch | None = None) -> tuple[Trace, ...]:
    """The events of each device that has any; device_memory is the bytes of each, where they are known. Raises
    InputError, naming the file and the key.
    """
    data = load_plain(path, watch)
    try:
        if (
            not isinstance(data, dict)
            or not isinstance(data["device_traces"], list)
            or not isinstance(data["segments"], list)
        ):
            raise InputError(
                f"{path}: is not a memory snapshot of PyTorch, which has the keys segments and device_traces"
            )
        settings = data.get("allocator_settings", {})
        text = (
            str(settings.get("PYTORCH_CUDA_ALLOC_CONF") or settings.get("PYTORCH_ALLOC_CONF") or "")
            if isinstance(settings, Mapping)
            else ""
        )
        rules = Settings.parse(text)
        recorded: dict[int, tuple[Recording, Stacks]] = {}
        for device, rows in enumerate(data["device_traces"]):
            if len(rows):
                recorded[device] = _events(rows, path), stacks_of(rows)
        data["device_traces"].clear()  # a million dicts
        initial = {
            device: _initial(events, [row for row in data["segments"] if row.get("device", 0) == device], rules)
            for device, (events, _) in recorded.items()
        }
    except InputError as error:
        raise InputError(
            str(error) if str(error).startswith(str(path)) else f"{path}: allocator_settings: {error}"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: is not a memory snapshot of PyTorch: {type(error).__name__} {' '.join(str(error).split())[:100]}"
        ) from error
    if not recorded:
        raise InputError(f"{path}: device_traces: is empty; record with torch.cuda.memory._record_memory_history()")
    made = []
    for device, (events, stacks) in recorded.items():
        memory = device_memory or memory_of(events, sum(segment.bytes for segment in initial[device]))
        trace = trace_of_events(
            events, initial[device], str(path), "snapshot", text, device_memory=memory, stacks=stacks
        )
        made.append(replace(trace, device=device if len(recorded) > 1 else None))
    return tuple(made)


def _events(rows: Rows, path: Path) -> Recording:
    """Returns the rows as columns. An out of memory has the device's free bytes for an address, as the recorder writes
    it. Raises InputError.
    """
    n = len(rows)
    unknown = {row["action"] for row in rows if not isinstance(row["action"], str) or row["action"] not in CODES}
    if unknown:
        event = next(at for at, row in enumerate(rows) if row["action"] in unknown)
        raise InputError(
            f"{path}: event {event}: {rows[event]['action']!r} is not an action of the allocator; valid are "
            f"{', '.join(CODES)}"
        )
    action = np.fromiter((CODES[row["action"]] for row in rows), np.uint8, n)
    address = np.fromiter(
        (row["device_free"] if row["action"] == "oom" else row.get("addr", 0) for row in rows), np.int64, n
    )
    size, stream = (np.fromiter((row[key] for row in rows), np.int64, n) for key in ("size", "stream"))
    return Recording(action, address, size, stream, np.zeros(n, np.int32), ("trace",))


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

    def settled(segment: Segment) -> Segment:
        limits = [live.address for live in segment.live[1:]] + [segment.address + segment.bytes]
        return replace(
            segment,
            live=tuple(
                whole(live, limit) for live, limit in zip(segment.live, limits[: len(segment.live)], strict=True)
            ),
        )

    return [segment if segment.small or segment.expandable else settled(segment) for segment in segments]


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
