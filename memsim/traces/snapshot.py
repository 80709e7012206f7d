"""PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`) → Trace; the state at their start is rebuilt backwards from the final segments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.traces.events import SMALL_SEGMENT, Event, Segment, trace_of_events
from memsim.traces.pickles import load_plain
from memsim.traces.trace import Trace


def load_snapshot(path: Path) -> Trace:
    """The events of the device that has most. Raises InputError, naming the file and the key."""
    data = load_plain(path)
    try:
        if not isinstance(data, dict) or not isinstance(data["device_traces"], list) or not isinstance(data["segments"], list):
            raise InputError(f"{path}: is not a memory snapshot of PyTorch, which has the keys segments and device_traces")
        traces: list[list[dict[str, Any]]] = data["device_traces"]
        device = max(range(len(traces)), key=lambda index: len(traces[index]), default=0)
        events: list[Event] = [
            (str(event["action"]), int(event["device_free"] if event["action"] == "oom" else event["addr"]) if event["action"] != "snapshot" else 0,
             int(event["size"]), int(event["stream"]), 0)
            for event in (traces[device] if traces else [])
        ]  # fmt: skip
        segments = [segment for segment in data["segments"] if segment.get("device", 0) == device]
        initial = _initial(events, segments)
        settings = data.get("allocator_settings", {})
        text = str(settings.get("PYTORCH_CUDA_ALLOC_CONF") or settings.get("PYTORCH_ALLOC_CONF") or "") if isinstance(settings, Mapping) else ""
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: is not a memory snapshot of PyTorch: {type(error).__name__} {' '.join(str(error).split())[:100]}") from error
    if not events:
        raise InputError(f"{path}: device_traces: is empty; record with torch.cuda.memory._record_memory_history()")
    return trace_of_events(events, initial, ("trace",), str(path), "snapshot", settings=text)


def _initial(events: list[Event], segments: list[dict[str, Any]]) -> list[Segment]:
    """The segments and live blocks before the first event: the events, run backwards from the end."""
    held = {int(s["address"]): (int(s["total_size"]), int(s["stream"]), s["segment_type"] == "small") for s in segments if not s.get("is_expandable")}
    live = {}
    for segment in segments:
        at = int(segment["address"])
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                live[int(block.get("address", at))] = int(block.get("requested_size", block["size"]))
            at += int(block["size"])
    for action, address, size, stream, _ in reversed(events):
        if action == "alloc":
            live.pop(address, None)
        elif action in ("free_completed", "free"):
            live[address] = size
        elif action == "segment_alloc":
            held.pop(address, None)
        elif action == "segment_free":
            held[address] = (size, stream, size == SMALL_SEGMENT)
    places = sorted(held)
    inside: dict[int, list[tuple[int, int]]] = {place: [] for place in places}
    from bisect import bisect_right

    for address, size in live.items():
        at = bisect_right(places, address) - 1
        if at >= 0 and address < places[at] + held[places[at]][0]:
            inside[places[at]].append((address, size))
    return [Segment(place, *held[place], tuple(inside[place])) for place in places]
