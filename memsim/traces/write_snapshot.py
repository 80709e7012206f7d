"""Timeline → a memory snapshot as `torch.cuda.memory._dump_snapshot` writes it, for PyTorch's _memory_viz.py and pytorch.org/memory_viz."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from memsim.allocator import DriverAction
from memsim.tape import Action
from memsim.timeline import Timeline

DRIVER = {
    DriverAction.SEGMENT_ALLOC: "segment_alloc",
    DriverAction.SEGMENT_FREE: "segment_free",
    DriverAction.SEGMENT_MAP: "segment_map",
    DriverAction.SEGMENT_UNMAP: "segment_unmap",
}
SMALL = 1 << 20  # bytes: requests up to it live in segments of 2 MiB
Frames = list[dict[str, Any]]


def write_snapshot(timeline: Timeline, path: str | Path) -> None:
    """Writes the events as far as the device served them, and the segments after the last. Frames are operator, layer and phase."""
    with Path(path).open("wb") as file:
        pickle.dump(snapshot(timeline), file, protocol=4)


def snapshot(timeline: Timeline) -> dict[str, Any]:
    """The snapshot as plain data; time_us counts the tape's events."""
    frames = _Frames(timeline)
    settings = dict(timeline.about.facts).get("allocator", "")
    text = "" if settings == "default" else settings
    return {
        "segments": _segments(timeline, frames),
        "device_traces": [_events(timeline, frames)],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": text, "expandable_segments": "expandable_segments:True" in text},
        "external_annotations": [],
    }


class _Frames:
    """The frames of an event; equal ones are one list, so that the file stays small."""

    def __init__(self, timeline: Timeline) -> None:
        self.tape = timeline.tape
        self.made: dict[tuple[int, int, int], Frames] = {}

    def of(self, event: int) -> Frames:
        tape = self.tape
        key = int(tape.operator[event]), int(tape.layer[event]), int(tape.phase[event])
        if key not in self.made:
            names = [tape.operators[key[0]] if tape.operators else ""]
            names += [f"layer {key[1]}"] if key[1] >= 0 else []
            names += [tape.phases[key[2]]] if tape.phases else []
            self.made[key] = [{"name": name or "unattributed", "filename": "memsim", "line": 0} for name in names]
        return self.made[key]


def _events(timeline: Timeline, frames: _Frames) -> list[dict[str, Any]]:
    tape, answer = timeline.tape, timeline.answer
    driver: dict[int, list[dict[str, Any]]] = {}
    for event, action, address, size in zip(
        answer.driver_event.tolist(), answer.driver_action.tolist(), answer.driver_address.tolist(), answer.driver_bytes.tolist(), strict=True
    ):
        name = DRIVER[DriverAction(action)]
        row = {"action": name, "addr": address, "size": size, "stream": int(tape.stream[event]), "time_us": event, "frames": frames.of(event)}
        driver.setdefault(event, []).append(row)
    made: list[dict[str, Any]] = []
    for event in range(answer.processed):
        made += driver.get(event, [])
        action, address = int(tape.action[event]), int(answer.address[event])
        row = {"addr": address, "size": int(tape.bytes[event]), "stream": int(tape.stream[event]), "time_us": event, "frames": frames.of(event)}
        if action == Action.ALLOC and address == -1:
            free = timeline.answer.out_of_memory.device_free if timeline.answer.out_of_memory else 0
            made.append({**row, "action": "oom", "device_free": free})
        elif action == Action.ALLOC and address > 0:
            made.append({**row, "action": "alloc"})
        elif action == Action.FREE and address > 0:
            made += [{**row, "action": "free_requested"}, {**row, "action": "free_completed"}]
    return made


def _segments(timeline: Timeline, frames: _Frames) -> list[dict[str, Any]]:
    answer, tape = timeline.answer, timeline.tape
    if not answer.processed:
        return []
    from memsim.blockmap import block_map
    from memsim.lifetimes import lifetimes

    lives = lifetimes(tape, answer)
    layout = block_map(answer, lives, answer.processed - 1)
    made: list[dict[str, Any]] = []
    calls = {int(a): (int(e), int(k)) for a, e, k in zip(answer.driver_address, answer.driver_event, answer.driver_action, strict=True)}
    for index, (address, size) in enumerate(zip(layout.segment_address.tolist(), layout.segment_bytes.tolist(), strict=True)):
        event, kind = calls.get(address, (0, int(DriverAction.SEGMENT_MAP)))
        blocks: list[dict[str, Any]] = []
        for at in np.flatnonzero(layout.segment == index).tolist():
            storage, block = int(layout.storage[at]), int(layout.bytes[at])
            state = "inactive" if storage < 0 else "active_pending_free" if layout.waiting[at] else "active_allocated"
            asked = block if storage < 0 else int(lives.bytes[storage])
            stack = frames.of(int(lives.born[storage])) if storage >= 0 else []
            blocks.append({"address": int(layout.address[at]), "size": block, "requested_size": asked, "state": state, "frames": stack})
        used = [block for block in blocks if block["state"] != "inactive"]
        allocated = sum(block["size"] for block in used if block["state"] == "active_allocated")
        small = int(tape.bytes[event]) <= SMALL
        made.append(
            {
                "device": 0,
                "address": address,
                "total_size": size,
                "allocated_size": allocated,
                "active_size": sum(block["size"] for block in used),
                "requested_size": sum(block["requested_size"] for block in used),
                "stream": int(tape.stream[event]),
                "segment_type": "small" if small else "large",
                "segment_pool_id": (0, 0),
                "is_expandable": kind in (DriverAction.SEGMENT_MAP, DriverAction.SEGMENT_UNMAP),
                "frames": frames.of(event),
                "blocks": blocks,
            }
        )
    return made
