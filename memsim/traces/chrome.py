"""Chrome traces of the PyTorch profiler: `[memory]` events → a Trace with its answer. They give sizes and totals, but
not the requests to the allocator.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.errors import InputError, brief, show
from memsim.files import load_json, unpacked
from memsim.tape import Action, Category, Tape
from memsim.traces.columns import MOST_ADDRESS, MOST_SIZE
from memsim.traces.trace import Trace

CUDA = 1  # c10::DeviceType
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Totals:
    """Counters of one GPU over time (arrays of length n)."""

    source: str
    seconds: NDArray[np.float64]  # [n] as the profiler counts them
    address: Ints  # [n]
    bytes: Ints  # [n] bytes of the block; negative where it is freed
    allocated: Ints  # [n] bytes
    reserved: Ints  # [n] bytes


def load_chrome(path: str | Path) -> Totals:
    """Reads a .json or .json.gz. Returns the totals of the first GPU that has events. Raises InputError where the file
    is not a trace or has none.
    """
    place = Path(path)
    try:
        loaded = load_json(unpacked(place))
        found = _of_first_gpu(loaded["traceEvents"] if isinstance(loaded, dict) else loaded)
        arguments = [event["args"] for event in found]
        address, size, allocated, reserved = (
            _column(arguments, key, least)
            for key, least in (("Addr", 0), ("Bytes", -MOST_SIZE), ("Total Allocated", 0), ("Total Reserved", 0))
        )
        seconds = np.array([_microseconds(event) / 1e6 for event in found], np.float64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a Chrome trace: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OverflowError, zlib.error) as error:
        words = brief(f"{type(error).__name__} {error}", 120)
        raise InputError(f"{path}: is not a Chrome trace of the PyTorch profiler: {words}") from error
    if not found:
        raise InputError(f"{path}: has no [memory] events of a GPU; record with profile(profile_memory=True)")
    return Totals(str(path), seconds, address, size, allocated, reserved)


def _of_first_gpu(events: Any) -> list[dict[str, Any]]:
    """The [memory] events of the first GPU that has some, in order of time."""
    found = [event for event in events if event.get("name") == "[memory]" and event["args"].get("Device Type") == CUDA]
    device = found[0]["args"].get("Device Id", 0) if found else 0
    return sorted((event for event in found if event["args"].get("Device Id", 0) == device), key=_microseconds)


def _microseconds(event: dict[str, Any]) -> float:
    moment = float(event["ts"])
    if not math.isfinite(moment):
        raise ValueError(f"ts: {moment} is not a moment")
    return moment


def _column(rows: list[dict[str, Any]], key: str, least: int) -> Ints:
    numbers = [int(row[key]) for row in rows]
    most = MOST_ADDRESS if key == "Addr" else MOST_SIZE
    for number in numbers:
        if not least <= number <= most:
            raise ValueError(f"{key}: {show(number)} is not in {least} … {most}")
    return np.array(numbers, np.int64)


def storages_of(totals: Totals, first: int) -> tuple[Ints, list[int], list[int]]:
    """Returns the storage of each event [n], the bytes of each storage, and the storages that were there before the
    first event, when `first` bytes were allocated.
    """
    n = len(totals.bytes)
    live: dict[int, int] = {}
    sizes: list[int] = []  # by storage
    owner = np.zeros(n, np.int64)
    early: list[int] = []  # storages that were there before the first event
    for event, (address, size) in enumerate(zip(totals.address.tolist(), totals.bytes.tolist(), strict=True)):
        if size >= 0 or address not in live:
            live[address] = len(sizes)
            sizes.append(abs(size))
            if size < 0:
                early.append(live[address])
        owner[event] = live[address] if size >= 0 else live.pop(address)
    rest = first - sum(sizes[storage] for storage in early)
    if rest > 0:
        early.append(len(sizes))
        sizes.append(rest)
    return owner, sizes, early


def trace_of_totals(totals: Totals) -> Trace:
    """Returns the Trace whose answer is the recorded totals. Memory live at the start becomes initial ALLOCs, one for
    each block that is freed later.

    Sizes are those of blocks. A block that is freed without an ALLOC before was live at the start. The rest of the
    first total becomes one storage.
    """
    n = len(totals.bytes)
    first = int(totals.allocated[0] - totals.bytes[0])
    owner, sizes, early = storages_of(totals, first)
    k, of = len(early), np.array(sizes, np.int64)
    start = np.array(early, np.int64)
    storage = np.concatenate([start, owner])
    action = np.concatenate(
        [np.full(k, Action.ALLOC, np.uint8), np.where(totals.bytes >= 0, Action.ALLOC, Action.FREE).astype(np.uint8)]
    )
    # An address may be anything but 0. The rest of the memory live at the start has none.
    address = np.concatenate([np.ones(k, np.int64), np.maximum(totals.address, 1)])
    grown = np.minimum(np.cumsum(of[start]), first) if k else start
    allocated = np.concatenate([grown, totals.allocated])
    reserved = np.concatenate([np.full(k, totals.reserved[0], np.int64), totals.reserved])
    tape = Tape(
        action=action,
        storage=storage,
        bytes=of[storage],
        stream=np.zeros(k + n, np.int64),
        phase=np.concatenate([np.zeros(k, np.int32), np.ones(n, np.int32)]),
        operator=np.concatenate([np.zeros(k, np.int32), np.ones(n, np.int32)]),
        layer=np.full(k + n, -1, np.int32),
        category=np.full(k + n, Category.UNATTRIBUTED, np.uint8),
        phases=("before", "trace"),
        operators=("before the recording", "profiler"),
    )
    answer = answer_of_totals(address, of[storage], allocated, reserved)
    return Trace(tape, totals.source, "totals", address, np.zeros(k + n, bool), prefix=k, answer=answer)


def answer_of_totals(address: Ints, block: Ints, allocated: Ints, reserved: Ints) -> Answer:
    """Returns an Answer that knows only totals."""
    n = len(address)
    nothing = np.zeros(0, np.int64)
    return Answer(
        address=address,
        block=block,
        requested=allocated,
        allocated=allocated,
        active=allocated,
        reserved=reserved,
        segments=np.zeros(n, np.int64),
        retries=np.zeros(n, np.int64),
        ooms=np.zeros(n, np.int64),
        driver_event=nothing,
        driver_action=nothing.astype(np.uint8),
        driver_address=nothing,
        driver_bytes=nothing,
        processed=n,
        out_of_memory=None,
    )
