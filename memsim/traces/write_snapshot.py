"""Timeline → a memory snapshot as `torch.cuda.memory._dump_snapshot` writes it, for PyTorch's _memory_viz.py and
pytorch.org/memory_viz.
"""

from __future__ import annotations

import pickle
from bisect import bisect_right, insort
from pathlib import Path
from typing import Any

import numpy as np

from memsim.allocator import DriverAction, Settings
from memsim.allocator.rules import GOLDEN
from memsim.files import beside
from memsim.tape import Action
from memsim.timeline.blockmap import block_map
from memsim.timeline.curves import Curves
from memsim.timeline.lifetimes import Lifetimes, lifetimes

DRIVER = {
    DriverAction.SEGMENT_ALLOC: "segment_alloc",
    DriverAction.SEGMENT_FREE: "segment_free",
    DriverAction.SEGMENT_MAP: "segment_map",
    DriverAction.SEGMENT_UNMAP: "segment_unmap",
}
SMALL = 1 << 20  # bytes; requests up to this size live in segments of 2 MiB
Frames = list[dict[str, Any]]


def write_snapshot(timeline: Curves, path: str | Path) -> None:
    """Writes the events as far as the device served them, and the segments after the last. Frames are operator, layer
    and phase.

    Raises InputError where the path cannot be written; then there is no file.
    """
    with beside(Path(path)) as file:
        pickle.dump(snapshot(timeline), file, protocol=4)


def snapshot(timeline: Curves) -> dict[str, Any]:
    """Returns the snapshot as plain data. time_us counts the tape's events."""
    frames, calls = _Frames(timeline), _SegmentsMade(timeline)
    return {
        "segments": _segments(timeline, frames, calls),
        "device_traces": [_events(timeline, frames, calls)],
        "allocator_settings": _settings(timeline.about.allocator, timeline.about.versions.get("torch", GOLDEN)),
        "external_annotations": [],
    }


def _settings(text: str, torch: str) -> dict[str, Any]:
    """Returns the settings as PyTorch notes them (torch/csrc/cuda/memory_snapshot.cpp)."""
    settings = Settings.parse(text, torch)
    return {
        "PYTORCH_CUDA_ALLOC_CONF": text,
        "max_split_size": -1 if settings.max_split_size is None else settings.max_split_size,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "graph_capture_record_stream_reuse": False,
        "roundup_power2_divisions": {
            str(1 << power): divisions for power, divisions in enumerate(settings.roundup_power2_divisions)
        },
    }


class _Frames:
    """The frames of events. Equal ones are one list, so that the file stays small."""

    def __init__(self, timeline: Curves) -> None:
        self.tape = timeline.tape
        self.made: dict[tuple[int, int, int], Frames] = {}

    def of(self, event: int) -> Frames:
        """Returns the frames of an event of the tape."""
        tape = self.tape
        key = int(tape.operator[event]), int(tape.layer[event]), int(tape.phase[event])
        if key not in self.made:
            names = [tape.operators[key[0]] if tape.operators else ""]
            names += [f"layer {key[1]}"] if key[1] >= 0 else []
            names += [tape.phases[key[2]]] if tape.phases else []
            self.made[key] = [{"name": name or "unattributed", "filename": "memsim", "line": 0} for name in names]
        return self.made[key]


def _events(timeline: Curves, frames: _Frames, segments: _SegmentsMade) -> list[dict[str, Any]]:
    tape, answer, lives = timeline.tape, timeline.answer, lifetimes(timeline.tape, timeline.answer)
    driver: dict[int, list[dict[str, Any]]] = {}
    for call, event in enumerate(answer.driver_event.tolist()):
        name, address, size = (
            DRIVER[DriverAction(int(answer.driver_action[call]))],
            int(answer.driver_address[call]),
            int(answer.driver_bytes[call]),
        )
        driver.setdefault(event, []).append(_row(name, address, size, segments.stream[call], event, frames))
    late: dict[int, list[int]] = {}  # storages whose free is noticed at an event
    for storage in np.flatnonzero(
        (lives.released > lives.died) & (lives.released < answer.processed) & (lives.block > 0)
    ).tolist():
        late.setdefault(int(lives.released[storage]), []).append(storage)
    made: list[dict[str, Any]] = []
    columns = (tape.action[: answer.processed], tape.storage, tape.bytes, answer.address)
    for event, (action, storage, size, address) in enumerate(
        zip(*(column[: answer.processed].tolist() for column in columns), strict=True)
    ):
        for other in late.get(event, ()):
            made.append(
                _row(
                    "free_completed",
                    int(lives.address[other]),
                    int(lives.bytes[other]),
                    segments.stream_of(lives, other),
                    event,
                    frames,
                )
            )
        made += driver.get(event, [])
        if action == Action.ALLOC and address == -1:
            failed = answer.out_of_memory
            row = _row("oom", 0, size, int(tape.stream[event]), event, frames)
            made.append({**row, "device_free": failed.device_free if failed and failed.event == event else 0})
        elif action == Action.ALLOC and address > 0:
            made.append(_row("alloc", address, size, int(tape.stream[event]), event, frames))
        elif action == Action.FREE and address > 0:
            stream = segments.stream_of(lives, storage)
            made.append(_row("free_requested", address, size, stream, event, frames))
            if lives.released[storage] == event:
                made.append(_row("free_completed", address, size, stream, event, frames))
    return made


def _row(action: str, address: int, size: int, stream: int, event: int, frames: _Frames) -> dict[str, Any]:
    return {
        "action": action,
        "addr": address,
        "size": size,
        "stream": stream,
        "time_us": event,
        "frames": frames.of(event),
    }


class _SegmentsMade:
    """The stream whose memory each driver call is about. A release does not come from a request of that stream."""

    def __init__(self, timeline: Curves) -> None:
        answer, self.tape = timeline.answer, timeline.tape
        self.stream: list[int] = []
        self.made: list[tuple[int, int]] = []  # (first address, call) of every segment and mapping, by address
        for call, (event, action, address) in enumerate(
            zip(
                answer.driver_event.tolist(), answer.driver_action.tolist(), answer.driver_address.tolist(), strict=True
            )
        ):
            if action in (DriverAction.SEGMENT_ALLOC, DriverAction.SEGMENT_MAP):
                insort(self.made, (address, call))
                self.stream.append(int(self.tape.stream[event]))
            else:
                self.stream.append(self.stream[self.call_of(address)])

    def call_of(self, address: int) -> int:
        """Returns the latest call that made the segment, or mapped the pages, in which an address lies."""
        return self.made[bisect_right(self.made, (address, 1 << 62)) - 1][1]

    def stream_of(self, lives: Lifetimes, storage: int) -> int:
        """Returns the stream on which a storage was allocated."""
        return int(self.tape.stream[lives.born[storage]])


def _segments(timeline: Curves, frames: _Frames, calls: _SegmentsMade) -> list[dict[str, Any]]:
    answer = timeline.answer
    if not answer.processed:
        return []
    lives = lifetimes(timeline.tape, answer)
    layout = block_map(answer, lives, answer.processed - 1)
    made: list[dict[str, Any]] = []
    for index, (address, size) in enumerate(
        zip(layout.segment_address.tolist(), layout.segment_bytes.tolist(), strict=True)
    ):
        call = calls.call_of(address)
        event = int(answer.driver_event[call])
        blocks: list[dict[str, Any]] = []
        for at in np.flatnonzero(layout.segment == index).tolist():
            storage, block = int(layout.storage[at]), int(layout.bytes[at])
            state = "inactive" if storage < 0 else "active_pending_free" if layout.waiting[at] else "active_allocated"
            asked = block if storage < 0 else int(lives.bytes[storage])
            stack = frames.of(int(lives.born[storage])) if storage >= 0 else []
            blocks.append(
                {
                    "address": int(layout.address[at]),
                    "size": block,
                    "requested_size": asked,
                    "state": state,
                    "frames": stack,
                }
            )
        used = [block for block in blocks if block["state"] != "inactive"]
        allocated = sum(block["size"] for block in used if block["state"] == "active_allocated")
        made.append(
            {
                "device": 0,
                "address": address,
                "total_size": size,
                "allocated_size": allocated,
                "active_size": sum(block["size"] for block in used),
                "requested_size": sum(block["requested_size"] for block in used),
                "stream": calls.stream[call],
                "segment_type": "small" if int(timeline.tape.bytes[event]) <= SMALL else "large",
                "segment_pool_id": (0, 0),
                "is_expandable": int(answer.driver_action[call])
                in (DriverAction.SEGMENT_MAP, DriverAction.SEGMENT_UNMAP),
                "frames": frames.of(event),
                "blocks": blocks,
            }
        )
    return made
