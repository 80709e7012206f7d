"""Stack frames of snapshots: requests are named by the user's own line, and hostile frames are as if not there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import memsim
from memsim.tape import Action
from memsim.traces.load import load_trace, load_traces

PACKAGES = "/project/venv/lib/python3.11/site-packages"
MINE = {"filename": "/project/train.py", "line": 12, "name": "forward"}
LIBRARY = {"filename": f"{PACKAGES}/transformers/modeling.py", "line": 7, "name": "call"}
TORCH = {"filename": f"{PACKAGES}/torch/nn/modules/linear.py", "line": 125, "name": "forward"}
STANDARD = {"filename": "/usr/lib/python3.11/threading.py", "line": 982, "name": "run"}
WINDOWS = {"filename": r"C:\Users\me\cpython-3.10\lib\copy.py", "line": 153, "name": "deepcopy"}
NATIVE = {"filename": "CUDACachingAllocator.cpp", "line": 0, "name": "c10::cuda::malloc(unsigned long)"}
NOISE = {"filename": "??", "line": 0, "name": "_PyEval_EvalFrameDefault"}
NODE = {"filename": "??", "line": 0, "name": "torch::autograd::generated::MulBackward0::apply(std::vector<at::Tensor>)"}
ENGINE = {"filename": "??", "line": 0, "name": "torch::autograd::Engine::thread_main()"}


def alloc(address: int, frames: object, size: int = 512) -> dict[str, Any]:
    return {"action": "alloc", "addr": address, "size": size, "stream": 0, "frames": frames}


def saved(path: Path, *devices: list[dict[str, Any]]) -> Path:
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": list(devices), "allocator_settings": {}}))
    return path


@pytest.mark.parametrize(
    ("frames", "name"),
    [
        ([NATIVE, NOISE, TORCH, LIBRARY, MINE, STANDARD], "train.py:12 forward"),
        ([NATIVE, TORCH, LIBRARY, STANDARD], "modeling.py:7 call"),
        ([NATIVE, STANDARD, TORCH], "linear.py:125 forward"),
        ([NATIVE, WINDOWS, MINE], "train.py:12 forward"),
        ([WINDOWS], "copy.py:153 deepcopy"),
        ([NATIVE, NODE, ENGINE], "MulBackward0"),
        ([NATIVE, ENGINE], "autograd"),
        ([NATIVE], NATIVE["name"]),
        ([{"filename": "/me/net/__init__.py", "line": 3, "name": "f"}], "net/__init__.py:3 f"),
        ([{"filename": "<ipython-input-3-a>", "line": 3, "name": "<module>"}], "<ipython-input-3-a>:3 <module>"),
        ([{"filename": "memsim", "line": 0, "name": "self_attn.q_proj"}], "self_attn.q_proj"),
    ],
)
def test_the_innermost_frame_of_the_users_own_names_a_request(tmp_path: Path, frames: object, name: str) -> None:
    tape = load_trace(saved(tmp_path / "t.pickle", [alloc(512, frames)])).tape
    assert [tape.operators[at] for at in tape.operator] == [name]


def test_the_whole_stack_stays_without_the_interpreters_own_frames(tmp_path: Path) -> None:
    tape = load_trace(saved(tmp_path / "t.pickle", [alloc(512, [NATIVE, NOISE, TORCH, MINE]), alloc(1024, [])])).tape
    assert tape.calls is not None
    assert tape.calls.text(0).splitlines() == [
        "CUDACachingAllocator.cpp c10::cuda::malloc(unsigned long)",
        f"{PACKAGES}/torch/nn/modules/linear.py:125 forward",
        "/project/train.py:12 forward",
    ]
    assert tape.calls.text(1) == "" and tape.operators[tape.operator[1]] == "no frame recorded"
    assert len(set(tape.operators)) == len(tape.operators)


def test_what_is_no_frame_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    nested: object = ()
    for _ in range(6):
        nested = (nested, nested)  # what unfolds further, the reader of pickles refuses
    bad: list[object] = [None, 7, "text", {}, {"filename": nested, "line": 1, "name": "a"}]
    bad += [{"filename": "a.py", "line": "1", "name": "a"}, {"filename": "a.py", "line": 1, "name": nested}]
    rows = [alloc(512 * at, frames) for at, frames in enumerate((None, 7, "text", {}, bad, [*bad, MINE]), 1)]
    tape = load_trace(saved(tmp_path / "t.pickle", rows)).tape
    assert [tape.operators[at] for at in tape.operator] == ["no frame recorded"] * 5 + ["train.py:12 forward"]
    long = {"filename": "??", "line": 0, "name": "f<" + "int, " * 100_000 + ">"}
    tape = load_trace(saved(tmp_path / "t.pickle", [alloc(512, [long] * 10_000)])).tape
    assert tape.calls is not None and len(tape.calls.frames[0]) <= 160 and len(tape.calls.stacks[0]) <= 400


def test_a_snapshot_without_frames_names_nothing(tmp_path: Path) -> None:
    trace = load_trace(saved(tmp_path / "t.pickle", [alloc(512, [])]))
    assert trace.tape.operators == ("",) and trace.tape.calls is None


def test_every_device_with_events_is_a_trace(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.pickle", [alloc(512, [MINE])], [], [alloc(512, [MINE]), alloc(1024, [MINE])])
    found = load_traces(path)
    assert [(trace.device, len(trace.tape)) for trace in found] == [(0, 1), (2, 2)]
    assert load_trace(path).device == 2  # that with most events
    assert [trace.device for trace in load_traces(saved(tmp_path / "one.pickle", [alloc(512, [])]))] == [None]


def test_what_was_held_before_the_recording_is_named_so(tmp_path: Path) -> None:
    block = {"address": 1 << 30, "size": 2 << 20, "requested_size": 2 << 20, "state": "active_allocated"}
    segment = {"address": 1 << 30, "total_size": 2 << 20, "stream": 0, "segment_type": "small", "blocks": [block]}
    row = {"action": "alloc", "addr": 2 << 30, "size": 4 << 20, "stream": 0, "frames": [MINE]}
    new = {**segment, "address": 2 << 30, "total_size": 20 << 20, "segment_type": "large"}
    new["blocks"] = [{**block, "address": 2 << 30, "size": 4 << 20, "requested_size": 4 << 20}]
    taken = {"action": "segment_alloc", "addr": 2 << 30, "size": 20 << 20, "stream": 0, "frames": [MINE]}
    data = {"segments": [segment, new], "device_traces": [[taken, row]], "allocator_settings": {}}
    (tmp_path / "t.pickle").write_bytes(pickle.dumps(data))
    trace = load_trace(tmp_path / "t.pickle")
    names = [trace.tape.operators[at] for at in trace.tape.operator]
    assert set(names[: trace.prefix]) == {"before the recording"} and names[trace.prefix :] == ["train.py:12 forward"]
    about = memsim.replay(trace).about
    assert dict(about.facts)["held at its start"] == "2.0 MiB in 1 block, rebuilt from its end"
    assert about.first_event == trace.prefix and trace.tape.action[-1] == Action.ALLOC
