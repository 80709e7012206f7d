"""Recorded traces: every recorded address is predicted; files that cannot be used get one line."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import memsim
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.traces.load import load_trace
from memsim.traces.replay import check, replay
from memsim.traces.write_snapshot import write_snapshot

MIB = 1 << 20


class Names:
    """Pickles as a call of print."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def dumped(path: Path, events: list[dict[str, object]]) -> Path:
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [events], "allocator_settings": {}}))
    return path


def event(action: str, address: int = 0, size: int = 512) -> dict[str, object]:
    return {"action": action, "addr": address, "size": size, "stream": 0, "frames": []}


def operations(path: Path, rows: list[list[int]], settings: str = "") -> Path:
    np.savez(path, ops=np.array(rows, np.int64), settings=np.array(settings), device_memory=np.array(80 << 30))
    return path


def test_snapshots_agree(shared: Path) -> None:
    paths = sorted((shared / "traces").rglob("*.pickle"))
    found = [check(load_trace(path)) for path in paths]
    assert [row.source for row in found if row.agree != row.compared] == []


def test_golden_lists_agree(shared: Path) -> None:
    found = [check(load_trace(path)) for path in sorted((shared / "golden" / "allocator").glob("1?.npz"))]
    assert [row.source for row in found if row.agree != row.compared] == []


def test_round_trip(tmp_path: Path) -> None:
    rows = [[0, 0, 5 * MIB, 0], [0, 1, 700, 0], [0, 2, 30 * MIB, 0], [1, 0, 0, 0], [0, 3, 3 * MIB, 0]]
    first = replay(load_trace(operations(tmp_path / "a.npz", rows)))
    write_snapshot(first, tmp_path / "a.pickle")
    again = load_trace(tmp_path / "a.pickle")
    found = check(again, "2.15.0")
    assert (found.agree, found.compared, again.prefix) == (4, 4, 0)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([event("free_completed", 512)], "freed while it is not allocated"),
        ([event("alloc", 512, -1)], "event 0: size: -1; whole numbers"),
        ([event("dance", 512)], "'dance' is not an action"),
        ([event("alloc", 512), event("alloc", 512)], "allocated while it is in use"),
    ],
)
def test_impossible_events(tmp_path: Path, events: list[dict[str, object]], words: str) -> None:
    data = {"segments": [], "device_traces": [events], "allocator_settings": {}}
    if events[0]["action"] == "free_completed":
        data["segments"] = []
    (tmp_path / "t.pickle").write_bytes(pickle.dumps(data))
    with pytest.raises(InputError, match=words):
        load_trace(tmp_path / "t.pickle")


def test_foreign_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pickle.dumps({"segments": [1, 2, 3]})
    for data, words in (
        (pickle.dumps(Names()), "names the global builtins.print"),
        (whole[:-5], "not a whole pickle"),
        (whole, "not a memory snapshot"),
    ):
        (tmp_path / "t.pickle").write_bytes(data)
        assert main(["replay", str(tmp_path / "t.pickle")]) == 2
        shown = capsys.readouterr()
        assert words in shown.err and shown.err.count("\n") == 1 and "executed" not in shown.out


def test_operation_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rows, settings, words in (
        ([[1, 7, 0, 0]], "", "frees id 7, which was never allocated"),
        ([[0, 0, -5, 0]], "", "bytes -5 is not in"),
        ([[9, 0, 5, 0]], "", "kind 9 is not in"),
        ([[0, 0, 5, 0]], "max_split_size_mb:1", "too small"),
    ):
        assert main(["replay", str(operations(tmp_path / "o.npz", rows, settings))]) == 2
        assert words in capsys.readouterr().err


def test_device_smaller_than_first_segment(tmp_path: Path) -> None:
    timeline = memsim.replay(
        memsim.load_trace(operations(tmp_path / "o.npz", [[0, 0, 30 * MIB, 0]])), device_memory=20 * MIB
    )
    failed = timeline.answer.out_of_memory
    assert failed is not None and failed.event == 0
    assert main(["replay", str(tmp_path / "o.npz"), "--device-memory", "20MiB"]) == 1


def devices(path: Path) -> Path:
    """A snapshot with events of the devices 0 and 2."""
    traces = [[event("alloc", 512)], [], [event("alloc", 512, 3 * MIB), event("alloc", 8 * MIB)]]
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": traces, "allocator_settings": {}}))
    return path


def test_each_device_of_a_snapshot_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = devices(tmp_path / "t.pickle")
    assert main(["replay", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["device"], row["peak_allocated"]) for row in rows] == [(0, 512), (2, 3 * MIB + 512)]
    assert main(["replay", str(path), "--device", "2", "--json"]) == 0
    assert [row["device"] for row in json.loads(capsys.readouterr().out)["rows"]] == [2]
    assert main(["replay", str(path), "--device", "1"]) == 2
    assert capsys.readouterr().err == f"memsim: --device: 1: {path} has events of the devices 0, 2\n"


def test_several_devices_and_settings_are_set_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = devices(tmp_path / "t.pickle"), tmp_path / "page.html"
    assert main(["replay", str(path), "-o", str(page)]) == 0
    html = page.read_text()
    assert "device 0" in html and "device 2" in html and "Different devices are not ranked" in html
    assert "fastest" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    given = ["--device", "2", "--allocator", "", "--allocator", "expandable_segments:True"]
    assert main(["replay", str(path), *given, "-o", str(page)]) == 0
    html = page.read_text()
    assert "Both need 22.0 MiB: the settings make no difference." in html
    assert f"memsim replay {path} --allocator" in html and "--device 2 -o page.html" in html
    capsys.readouterr()
    assert main(["replay", str(path), "-o", str(tmp_path / "t.json")]) == 2
    assert "holds one replay, and there are 2 devices (--device N chooses one)" in capsys.readouterr().err


def test_a_replay_says_what_it_is_of(tmp_path: Path) -> None:
    path = operations(tmp_path / "a trace.npz", [[0, 0, 5 * MIB, 0]])
    about = memsim.replay(load_trace(path), "expandable_segments:True", "24GiB", "2.11.0").about
    assert about.name == "a trace.npz" and about.facts[0] == ("trace", "a trace.npz")
    options = "--allocator expandable_segments:True --device-memory 24GiB --torch 2.11.0"
    assert about.command == f"memsim replay '{path}' {options} -o report.html"
