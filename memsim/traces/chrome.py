"""Chrome traces of the PyTorch profiler: `[memory]` events → a timeline of totals. They name no requests to replay under other settings."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError


@dataclass(frozen=True, eq=False)
class Totals:
    """Counters of one GPU over time (arrays of length n)."""

    source: str
    seconds: NDArray[np.float64]  # [n] as the profiler counts them
    address: NDArray[np.int64]  # [n]
    bytes: NDArray[np.int64]  # [n] of the block; negative where it is freed
    allocated: NDArray[np.int64]  # [n] bytes
    reserved: NDArray[np.int64]  # [n] bytes


def load_chrome(path: str | Path) -> Totals:
    """Reads a .json or .json.gz; the first GPU that has events. Raises InputError where it is not one or has none."""
    place = Path(path)
    try:
        data = place.read_bytes()
        loaded = json.loads(gzip.decompress(data) if place.suffix == ".gz" else data)
        events = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
        found = [event for event in events if event.get("name") == "[memory]" and event["args"].get("Device Type") == 1]
        device = found[0]["args"].get("Device Id", 0) if found else 0
        found = sorted((event for event in found if event["args"].get("Device Id", 0) == device), key=lambda event: float(event["ts"]))
        arguments = [event["args"] for event in found]
        columns = [[int(row[key]) for row in arguments] for key in ("Addr", "Bytes", "Total Allocated", "Total Reserved")]
        seconds = np.array([float(event["ts"]) / 1e6 for event in found], np.float64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a Chrome trace: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise InputError(f"{path}: is not a Chrome trace of the PyTorch profiler: {' '.join(str(error).split())[:120]}") from error
    if not found:
        raise InputError(f"{path}: has no [memory] events of a GPU; record with profile(profile_memory=True)")
    address, size, allocated, reserved = (np.array(column, np.int64) for column in columns)
    return Totals(str(path), seconds, address, size, allocated, reserved)
