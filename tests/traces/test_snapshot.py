"""PyTorch's snapshots in and out: any part of a recording replays from its rebuilt first state; what is written is what
PyTorch's own tools read.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings as effort, strategies as st
from numpy.typing import NDArray
from oplists import MIB, Script, operation_lists

from memsim import Run, simulate
from memsim.errors import InputError
from memsim.tape import Action
from memsim.traces.load import load_trace
from memsim.traces.oplist import tape_of_operations
from memsim.traces.pickles import load_plain
from memsim.traces.replay import check, replay
from memsim.traces.write_snapshot import snapshot

ORACLE = Path.home() / ".cache" / "memsim-oracle" / "venv"


def written(path: Path, data: dict[str, Any], first: int = 0, last: int | None = None) -> Path:
    """The snapshot with its events from `first` on, as a recording that kept only its latest events has them."""
    path.write_bytes(pickle.dumps({**data, "device_traces": [data["device_traces"][0][first:last]]}))
    return path


def replayed_from(operations: NDArray[np.int64], text: str, folder: Path, part: float) -> tuple[int, int]:
    """(agreeing, compared) allocations of a snapshot of these operations whose first part is lost."""
    data = snapshot(replay(tape_of_operations(operations), text, torch="2.15.0"))
    count = len(data["device_traces"][0])
    if count == 0 or all(event["action"] != "alloc" for event in data["device_traces"][0][int(part * count) :]):
        return 0, 0
    found = check(load_trace(written(folder / "t.pickle", data, int(part * count))), "2.15.0")
    return found.agree, found.compared


@given(
    operations=operation_lists(),
    part=st.floats(0, 0.95),
    text=st.sampled_from(["expandable_segments:True", "expandable_segments:True,roundup_power2_divisions:4"]),
)
@effort(max_examples=80, deadline=None)
def test_a_recording_of_expandable_memory_may_begin_anywhere(
    tmp_path_factory: pytest.TempPathFactory, operations: Any, part: float, text: str
) -> None:
    # once pages are given back, a recording no longer tells where their reservation begins
    kept = operations[operations[:, 0] != 2]
    agree, compared = replayed_from(kept, text, tmp_path_factory.mktemp("cut"), part)
    assert agree == compared


@given(operations=operation_lists(), part=st.floats(0, 0.95))
@effort(max_examples=80, deadline=None)
def test_a_recording_may_begin_anywhere(tmp_path_factory: pytest.TempPathFactory, operations: Any, part: float) -> None:
    # Multiples of 2 MiB leave no remainder that is too small to split off, of which a recording does not tell whose it
    # is.
    operations = operations.copy()
    large = (operations[:, 0] == 0) & (operations[:, 2] > MIB)
    operations[large, 2] = -(-operations[large, 2] // (2 * MIB)) * 2 * MIB
    agree, compared = replayed_from(operations, "", tmp_path_factory.mktemp("cut"), part)
    assert agree == compared


@pytest.mark.parametrize(
    "text", ["", "expandable_segments:True", "max_split_size_mb:128", "garbage_collection_threshold:0.8"]
)
def test_a_training_step_alone(tmp_path: Path, text: str) -> None:
    run = Run.load(
        {"model": "llama3.2-1b", "method": {"kind": "lora"}, "batch": {"sequence": 200}, "steps": 2, "allocator": text}
    )
    timeline = simulate(run)
    data = snapshot(timeline)
    start = next(span.start for span in timeline.spans if span.phase == "1/forward")
    first = next(at for at, event in enumerate(data["device_traces"][0]) if event["time_us"] >= start)
    trace = load_trace(written(tmp_path / "t.pickle", data, first))
    found = check(trace, "2.15.0")
    assert found.agree == found.compared > 1000
    assert replay(trace, torch="2.15.0").peak_reserved == timeline.steps[1].peak_reserved


def test_a_free_that_waits_is_a_use_of_another_stream() -> None:
    script = Script()
    kept = script.alloc(3 * MIB)
    script.use(kept, 7)
    script.free(kept)
    script.alloc(3 * MIB)
    tape = tape_of_operations(np.array(script.rows, np.int64))
    events = snapshot(replay(tape))["device_traces"][0]
    assert [event["action"] for event in events] == [
        "segment_alloc",
        "alloc",
        "free_requested",
        "free_completed",
        "alloc",
    ]


def test_a_delay_is_replayed(tmp_path: Path) -> None:
    def event(action: str, address: int, size: int) -> dict[str, object]:
        return {"action": action, "addr": address, "size": size, "stream": 0, "frames": []}

    base = 1 << 40
    rows = [
        event("segment_alloc", base, 20 * MIB), event("alloc", base, 5 * MIB), event("free_requested", base, 5 * MIB),
        event("alloc", base + 5 * MIB, 5 * MIB), event("free_completed", base, 5 * MIB), event("alloc", base, 5 * MIB),
    ]  # fmt: skip
    path = written(tmp_path / "t.pickle", {"segments": [], "device_traces": [rows], "allocator_settings": {}})
    trace = load_trace(path)
    actions = [Action(action).name for action in trace.tape.action.tolist()]
    assert actions == ["ALLOC", "RECORD_STREAM", "FREE", "ALLOC", "COMPLETE", "ALLOC"]
    found = check(trace)
    assert (found.agree, found.compared) == (3, 3)
    answer = replay(trace).answer
    assert (answer.active - answer.allocated).tolist() == [0, 0, 5 * MIB, 5 * MIB, 5 * MIB, 0]


def test_an_out_of_memory_tells_the_device(tmp_path: Path) -> None:
    script = Script()
    script.alloc(30 * MIB)
    script.alloc(30 * MIB)
    tape = tape_of_operations(np.array(script.rows, np.int64))
    data = snapshot(replay(tape, device_memory=50 * MIB))
    assert data["device_traces"][0][-1]["action"] == "oom"
    trace = load_trace(written(tmp_path / "t.pickle", data))
    assert trace.device_memory == 50 * MIB
    found = check(trace, "2.15.0")
    assert (found.agree, found.compared) == (2, 2)


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    data = {
        "segments": [],
        "device_traces": [[]],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:lots"},
    }
    with pytest.raises(InputError, match="allocator_settings"):
        load_trace(written(tmp_path / "t.pickle", data))


def test_the_same_keys_as_pytorch_writes(shared: Path) -> None:
    real: Any = load_plain(sorted((shared / "traces").glob("silmont*.pickle"))[0])
    made = snapshot(simulate(Run.load({"model": "llama3.2-1b", "steps": 1})))
    assert real.keys() <= made.keys()
    assert real["allocator_settings"].keys() <= made["allocator_settings"].keys()
    assert real["segments"][0].keys() <= made["segments"][0].keys()
    assert real["segments"][0]["blocks"][0].keys() <= made["segments"][0]["blocks"][0].keys()
    assert {key for event in real["device_traces"][0] for key in event} - {"device_free"} <= set(
        made["device_traces"][0][0]
    )


def test_pytorchs_own_viewer_reads_it() -> None:
    places = sorted(ORACLE.glob("lib/python*/site-packages/torch/cuda/_memory_viz.py"))
    if not places:
        pytest.skip("needs PyTorch's _memory_viz.py of ../shared/oracle/setup.sh, which is not installed")
    spec = importlib.util.spec_from_file_location("memory_viz", places[0])
    assert spec is not None and spec.loader is not None
    viewer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(viewer)
    timeline = simulate(Run.load({"model": "llama3.2-1b", "steps": 2}))
    data = snapshot(timeline)
    held = int(timeline.answer.reserved[-1])
    assert f"{held / 2**30:.1f}GiB" in viewer.segsum(data).replace(" ", "")
    assert "alloc" in viewer.trace(data)
    assert "<script" in viewer.trace_plot(data) and "<script" in viewer.segment_plot(data)
