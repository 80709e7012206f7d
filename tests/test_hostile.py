"""Input that would kill or mislead: one line and exit code 2, or it works. It is bounded before it is built."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import MIB, event, segment, snapshot

from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.files import load_json, unpacked
from memsim.passes import patterns
from memsim.search.allocators import outcome
from memsim.traces.load import load_trace

SHARED = segment(blocks=[{"size": 512, "state": "inactive"}])
PICKLES = {
    "nested tuples": (b"\x80\x04})" + b"\x85" * 1_000_000 + b"K\x01s.", "nests containers more than 64 levels deep"),
    "nested lists": (b"\x80\x04" + b"]" * 1000 + b"a" * 999 + b".", "nests containers more than 64 levels deep"),
    "a key in itself": (b"\x80\x04})" + b"2\x86" * 40 + b"K\x01s.", "walking through it would not end"),
    "shared again and again": (b"\x80\x04)" + b"2\x86" * 60 + b".", "walking through it would not end"),
    "a list in itself": (b"\x80\x04]\x94h\x00a.", "holds itself"),
    "a dictionary in its list": (b"\x80\x04]\x94}\x94K\x01h\x00sa.", "holds itself"),
    "LONG_BINPUT": (b"\x80\x04]r\x00\xe1\xf5\x05.", "remembers a value under a number far beyond"),
    "PUT": (b"(lp100000000\n.", "remembers a value under a number far beyond"),
    "GET": (b"\x80\x04]h\x05.", "is not a whole pickle"),
    "a million dictionaries": (b"\x80\x04(" + b"}" * 4_000_000 + b"l.", "would take far more memory"),
    "sets": (b"\x80\x04(" + b"\x8f" * 2_000_000 + b"l.", "would take far more memory"),
    "a tuple as a key": (b"\x80\x04}K\x01\x85K\x01s.", "has a key that is no string or number"),
    "keys that collide": (pickle.dumps({k * (2**61 - 1): 0 for k in range(2**40, 2**40 + 9)}), "has a key that is no"),
    "a set of lists": (b"\x80\x04\x8f(]\x90.", "has a key that is no string or number"),
    "BINBYTES8": (b"\x80\x04\x8e\x00\x00\x00\x00\x01\x00\x00\x00abc.", "has a string or a number of more than 64 MiB"),
    "a frame": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x01\x00\x00N.", "is not a whole pickle"),
    "BUILD": (b"\x80\x04}Nb.", "builds an object"),
    "REDUCE": (b"\x80\x04N)R.", "builds an object"),
    "a global": (b"\x80\x04cos\nsystem\n.", "names the global os.system"),
    "a persistent id": (b"\x80\x04Pfoo\n.", "refers to an object outside of the file"),
    "an extension": (b"\x80\x04\x82\x01.", "is not a whole pickle"),
    "items for a number": (b"\x80\x04K\x01K\x02a.", "builds an object"),
    "nothing": (b"", "is empty"),
    "an end only": (b".", "is not a whole pickle"),
    "marks": (b"\x80\x04" + b"(" * 1000 + b".", "is not a whole pickle"),
}
SNAPSHOTS = {
    "a segment of 2^58": (
        snapshot([event("alloc")], [segment(size=2**58)]),
        "segment 0: total_size: 288230376151711744; whole numbers from 0 to 1125899906842624 are valid",
    ),
    "a small segment of 2^50": (snapshot([event("alloc")], [segment(size=2**50)]), "parts of 1 MiB, which is not"),
    "far pages": (
        snapshot([event("alloc")], [segment(at << 36, is_expandable=True) for at in range(1, 60)]),
        "parts of 1 MiB, which is not",
    ),
    "an address of 2^63": (snapshot([event("alloc", 2**63)]), "event 0: addr: 9223372036854775808; whole numbers"),
    "a segment there": (snapshot([event("alloc")], [segment(2**63)]), "segment 0: address: 9223372036854775808; whole"),
    "a stream of 2^63": (snapshot([event("alloc", stream=2**63)]), "event 0: stream: 9223372036854775808; whole"),
    "a size of 5,000 digits": (snapshot([event("alloc", size=10**5000)]), "event 0: size: a number of thousands of"),
    "a fraction": (snapshot([event("alloc", size=1.5)]), "event 0: size: 1.5; whole numbers"),  # type: ignore[arg-type]
    "no size": (snapshot([{"action": "alloc", "addr": 1, "stream": 0}]), "event 0: size: missing"),
    "an action that is a list": (snapshot([event([["x"]])]), "event 0: [['x']] is not an action"),  # type: ignore[arg-type]
    "an event that is a number": (snapshot([3]), "event 0: 3 is not a mapping"),
    "no list of blocks": (snapshot([event("alloc")], [segment(blocks=3)]), "segment 0: blocks: is not a list"),
    "shared blocks": (
        snapshot([event("alloc")], [SHARED, SHARED | {"address": 1 << 41}]),
        "segment 1: blocks: is the list of another segment",
    ),
    "free bytes": (snapshot([event("oom", device_free=-1)]), "event 0: device_free: -1; bytes"),
    "settings": (snapshot([event("alloc")], settings={"PYTORCH_ALLOC_CONF": "x" * 10_000}), "allocator_settings: "),
    "streams": (
        snapshot([event("alloc", 512 * at, 512, at) for at in range(1, 5000)]),
        "allocates on 4999 streams; up to 4096 are followed",
    ),
    "memory that no device has": (
        snapshot([event("segment_alloc", at << 30, 2**58 - 1) for at in range(40)]),
        "bytes in all, which no device does",
    ),
}


def refusal(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The line with which `memsim replay` refuses the file."""
    assert main(["replay", str(path), *more]) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == "" and line.startswith(f"memsim: {path}: ") and len(line) <= 1000 + 3
    return line


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, words = PICKLES[name]
    assert words in refusal(hostile.write(tmp_path, ".pickle", data), capsys)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshots(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, words = SNAPSHOTS[name]
    assert words in refusal(hostile.write(tmp_path, ".pickle", data), capsys)


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_plain_loads_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    data = hostile.plain_snapshot() | {"more": [(1, (2.5, -(2**70))), {"é": None}, b"x", True, {1, 2}, 10**400]}
    path = hostile.write(tmp_path, ".pickle", pickle.dumps(data, protocol))
    if protocol < 4:  # bytes are a call of codecs.encode in some, and sets one of set
        data.pop("more")
        path.write_bytes(pickle.dumps(data, protocol))
    trace = load_trace(path)
    assert trace.settings == "max_split_size_mb:64" and len(trace.tape) > 7


def test_a_sparse_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = hostile.write(tmp_path, ".pickle", b"")
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InputError, match=r"x\.pickle: is not a whole pickle: ends, or cannot be read, at byte 0"):
        load_trace(path)


def test_a_bomb_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile.write(tmp_path, ".npz", hostile.npz({"ops": np.zeros((8 << 20, 4), np.int64)}, packed=True))
    assert path.stat().st_size < MIB
    assert "its arrays take 268435584 bytes unpacked, far more than a file of its size holds" in refusal(path, capsys)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"ops.npy": b""}, "ops: is not an array"),
        ({"ops.npy": b"\x93NUMPY\x01\x00\xff\xff{}"}, "is not an operation list"),
        ({"ops": b"x"}, "ops: is not an array"),
        ({"action.npy": b""}, "address: missing"),
    ],
)
def test_archives(tmp_path: Path, members: dict[str, bytes], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(hostile.write(tmp_path, ".npz", hostile.archive(members)), capsys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ops": np.array([[0, 0, 2**63, 0]], np.uint64)}, "ops: row 0: bytes 9223372036854775808 is not in"),
        ({"ops": np.array([[0, 2**63, 1, 0]], np.uint64)}, "ops: row 0: id 9223372036854775808 is not in"),
        ({"ops": np.array([[0, 0, 1, 2**63]], np.uint64)}, "ops: row 0: stream 9223372036854775808 is not in"),
        ({"ops": np.array([[0.5, 0, 1, 0]])}, "ops: is not a table of whole numbers"),
        ({"settings": np.array(["a", "b"])}, "settings: is not text"),
        ({"device_memory": np.array(-5)}, "device_memory: -5 bytes; more than 0"),
        ({"device_memory": np.array([1, 2])}, "device_memory: is not a whole number"),
        ({"answers": np.zeros((3, 3), np.int64)}, "answers: has shape (3, 3)"),
    ],
)
def test_operation_lists(
    tmp_path: Path, changes: dict[str, np.ndarray], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile.write(tmp_path, ".npz", hostile.npz(hostile.operations() | changes))
    assert words in refusal(path, capsys)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, "is nested too deep"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "Expecting"),
        (b"[" + b"[]," * 4_000_000 + b"[]]", "would take far more memory than a text of its size holds"),
        (b"\xff", "is not a Chrome trace"),
    ],
)
def test_json(tmp_path: Path, data: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile.write(tmp_path, ".json", data)
    if words == "Expecting":  # within its means: no event in it
        words = "is not a Chrome trace of the PyTorch profiler: AttributeError"
    assert words in refusal(path, capsys)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("Bytes", -(2**63), "Bytes: -9223372036854775808 is not in"),
        ("Addr", 2**63, "Addr: 9223372036854775808 is not in"),
        ("Total Allocated", float("inf"), "OverflowError"),
        ("Total Reserved", -1, "Total Reserved: -1 is not in"),
        ("ts", float("nan"), "ts: nan is not a moment"),
        ("ts", float("inf"), "ts: inf is not a moment"),
    ],
)
def test_profiles(tmp_path: Path, key: str, value: object, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = hostile.chrome()
    found = data["traceEvents"][1]  # type: ignore[index]
    (found if key == "ts" else found["args"])[key] = value
    assert words in refusal(hostile.write(tmp_path, ".json", json.dumps(data).encode()), capsys)


def test_a_bomb_of_gzip(tmp_path: Path) -> None:
    import gzip

    path = hostile.write(tmp_path, ".json.gz", gzip.compress(b" " * (80 << 20)))
    with pytest.raises(InputError, match="unpacks to far more than a file of its size holds"):
        load_trace(path)
    path.write_bytes(gzip.compress(b"[1,")[:-9])
    with pytest.raises(InputError, match="is cut off"):
        load_trace(path)
    path.write_bytes(gzip.compress(b"[1,") + gzip.compress(b"2]"))
    assert load_json(unpacked(path)) == [1, 2]


def test_infinity_beside_a_recording(tmp_path: Path) -> None:
    path = hostile.write(tmp_path, ".npz", hostile.npz(hostile.recording()))
    for text in ('{"run": {"device_memory_gib": Infinity}}', "[" * 5000, "[]", '{"run": 3}'):
        path.with_suffix(".json").write_text(text)
        assert load_trace(path).device_memory is None


DEEP = "[" * 1000 + "]" * 1000
SLOW = "(([\\w.]+)+)+!"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", f"method.targets={DEEP}"], "--set method.targets: nested more than 32 levels deep"),
        (["--set", f"batch.size={'[' * 100_000}"], "--set batch.size: nested more than 32 levels deep"),
        (["--set", f"batch.size={'{a: ' * 1000}"], "--set batch.size: nested more than 32 levels deep"),
        (["--set", "batch.size=0x" + "f" * 6000], "batch.size: a number of thousands of digits is not a whole number"),
        (["--set", "device_memory_gib=.inf"], "device_memory_gib: inf is more than"),
        (["--set", f"allocator={'x' * 50_000}"], "allocator"),
        (["--set", "method.kind=lora", "--set", f"method.targets={SLOW}"], "takes over 2 s to match; write a simpler"),
        (
            ["--set", "method.kind=lora", "--set", "method.targets=(("],
            "targets: '((' is not a regular expression",
        ),
        (["--set", "method.kind=lora", "--set", "method.modules_to_save=['((']"], "is not a regular expression"),
    ],
)
def test_settings(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "qwen2.5-0.5b", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("memsim: ") and words in line and len(line) <= 1000 + 3


def test_a_deep_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ' + "[" * 100_000)
    assert main(["simulate", "qwen2.5-0.5b", "--set", f"model={tmp_path / 'config.json'}"]) == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err.splitlines()[-1]


def test_a_slow_pattern_is_stopped_once_for_all_names() -> None:
    name = "model.layers.0.self_attn.q_proj_and_more"
    with pytest.raises(InputError, match="takes over 2 s"):
        patterns.fullmatch(SLOW, name, "method.targets")
    with pytest.raises(InputError, match="takes over 2 s"):
        patterns.fullmatch(SLOW, name + "x", "method.targets")
    assert patterns.fullmatch(r".*\.q_proj_.*", name, "method.targets")


@pytest.mark.parametrize("kind", hostile.kinds())
def test_fuzz(tmp_path: Path, kind: str) -> None:
    """A few hundred files of each kind; benchmarks/fuzz_inputs.py goes on for minutes."""
    from memsim import Run

    read = 0
    for _, suffix, data in itertools.islice(hostile.files(1, kind), 200):
        path = hostile.write(tmp_path, suffix, data)
        try:
            if suffix == ".yaml":
                Run.load(path)
            else:
                outcome(load_trace(path), None, None, None, False)
            read += 1
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
    assert read
