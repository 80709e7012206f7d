"""Reads a file as a Trace, by its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memsim.allocator.serving import MOST_BYTES
from memsim.errors import InputError
from memsim.files import load_json
from memsim.tape import Action
from memsim.traces import recorder
from memsim.traces.chrome import load_chrome, trace_of_totals
from memsim.traces.columns import MOST_SIZE, check_range
from memsim.traces.events import check_streams, memory_of, trace_of_events
from memsim.traces.npz import load_arrays, names_in
from memsim.traces.oplist import tape_of_operations
from memsim.traces.pickles import Watch
from memsim.traces.snapshot import load_snapshot, load_snapshots
from memsim.traces.trace import Trace
from memsim.units import bytes_of, read_bytes


def load_trace(path: str | Path, device_memory: int | str | None = None, watch: Watch | None = None) -> Trace:
    """Reads a PyTorch snapshot (.pickle), a recording or an operation list (.npz), or a Chrome trace of the profiler
    (.json, .json.gz).

    device_memory: bytes, or "24GiB", of the device that was recorded on, where the file does not say. It separates the
    releases of memory that the allocator had to make from those that the program requested by empty_cache(). watch:
    wraps the file through which a snapshot is read. Raises InputError, one line naming the file.
    """
    place, memory = Path(path), bytes_of(device_memory)
    if place.suffix in (".pickle", ".pkl"):
        return load_snapshot(place, memory, watch)
    if place.name.endswith((".json", ".json.gz")):
        return trace_of_totals(load_chrome(place))
    if place.suffix != ".npz":
        raise InputError(
            f"{path}: is not a trace; .pickle (PyTorch's snapshots), .npz (recordings, operation lists) and .json "
            "(Chrome traces) are"
        )
    return _operations(place) if "ops" in names_in(place) else _recording(place, memory)


def load_traces(
    path: str | Path, device_memory: int | str | None = None, watch: Watch | None = None
) -> tuple[Trace, ...]:
    """`load_trace`, but of a snapshot every device that has events."""
    if Path(path).suffix in (".pickle", ".pkl"):
        return load_snapshots(Path(path), bytes_of(device_memory), watch)
    return (load_trace(path, device_memory, watch),)


def _operations(path: Path) -> Trace:
    others = {"answers": ("iu", 2), "settings": ("U", 0), "device_memory": ("iu", 0)}
    arrays = load_arrays(path, "an operation list", {"ops": ("iu", 2)}, others)
    operations, answers = arrays["ops"], arrays.get("answers")
    settings = str(arrays.get("settings", ""))
    memory = int(arrays["device_memory"]) if "device_memory" in arrays else None
    if memory is not None and not 0 < memory < MOST_BYTES:
        raise InputError(f"{path}: device_memory: {memory} bytes; more than 0 and less than 2^58 is valid")
    if operations.shape[1] != 4:
        raise InputError(
            f"{path}: ops: has shape {operations.shape}; rows of four whole numbers (kind, id, bytes, stream) are valid"
        )
    for column, name, most in ((0, "kind", 3), (1, "id", 2**62), (2, "bytes", MOST_SIZE), (3, "stream", 2**62)):
        check_range(operations[:, column], most, f"{path}: ops: row", name)
    operations = operations.astype(np.int64)
    check_streams(operations[operations[:, 0] == 0, 3], str(path))
    tape = tape_of_operations(operations)
    lost = np.flatnonzero((tape.action == Action.FREE) & (tape.storage < 0))
    if len(lost):
        raise InputError(
            f"{path}: ops: row {int(lost[0])}: frees id {int(operations[lost[0], 1])}, which was never allocated"
        )
    n = len(tape)
    if answers is None:
        return Trace(
            tape,
            str(path),
            "operations",
            np.zeros(n, np.int64),
            np.zeros(n, bool),
            settings=settings,
            device_memory=memory,
        )
    if answers.shape != (n, 2):
        raise InputError(f"{path}: answers: has shape {answers.shape}; ({n}, 2) is valid")
    answers = answers.astype(np.int64)
    return Trace(
        tape,
        str(path),
        "operations",
        answers[:, 0],
        tape.action == Action.ALLOC,
        answers[:, 1].copy(),
        settings=settings,
        device_memory=memory,
    )


def _recording(path: Path, told: int | None) -> Trace:
    recording = recorder.load(path)
    settings, memory = "", told or memory_of(recording)
    beside = path.with_suffix(".json")  # the recorder's file, which names the run
    if beside.is_file():
        try:
            found = load_json(beside.read_bytes())
            run = found["run"] if isinstance(found, dict) else {}
            settings = str(run.get("allocator") or "")
            memory = memory or read_bytes(run["device_memory_gib"])
        except (ValueError, AttributeError, OSError, KeyError, TypeError):
            pass  # it says nothing of the device
    return trace_of_events(recording, (), str(path), "recording", settings, memory)
