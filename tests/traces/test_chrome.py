"""Chrome traces of the profiler load as a timeline of totals, and are not replayed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.traces.load import load_trace
from memsim.traces.replay import replay

MIB = 1 << 20


def memory(
    at: int, address: int, size: int, allocated: int, reserved: int = 20 * MIB, kind: int = 1
) -> dict[str, object]:
    arguments = {
        "Device Type": kind,
        "Device Id": 0,
        "Addr": address,
        "Bytes": size,
        "Total Allocated": allocated,
        "Total Reserved": reserved,
    }
    return {"ph": "i", "name": "[memory]", "ts": at, "args": arguments}


def saved(path: Path, events: list[dict[str, object]]) -> Path:
    data = json.dumps({"traceEvents": events}).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


EVENTS = [
    memory(3, 4096, -MIB, 6 * MIB),  # out of order, as threads write them
    memory(1, 4096, MIB, 7 * MIB),
    memory(2, 9, 5 * MIB, 5 * MIB, kind=0),  # of the CPU
    memory(4, 8192, -2 * MIB, 4 * MIB),
]


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_totals(tmp_path: Path, name: str) -> None:
    timeline = replay(load_trace(saved(tmp_path / name, EVENTS)))
    # Before: what address 8192 holds, and the 4 MiB that no event names.
    assert timeline.about.first_event == 2
    assert timeline.answer.allocated.tolist() == [2 * MIB, 6 * MIB, 7 * MIB, 6 * MIB, 4 * MIB]
    assert (timeline.peak_allocated, timeline.peak_reserved) == (7 * MIB, 20 * MIB)
    assert timeline.at_peak().allocated == 7 * MIB and timeline.bounds is None
    spare = timeline.fragmentation()
    assert (spare.reserved, spare.segments) == (20 * MIB, 0)


def test_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(saved(tmp_path / "t.json", EVENTS)), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert '<section aria-labelledby="map-title" hidden>' in page and "the profiler" in page
    assert "0.020" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [["--check"], ["--allocator", ""], ["--device-memory", "1GiB"], ["--smallest-device"]]
)
def test_it_is_not_replayed(tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(saved(tmp_path / "t.json", EVENTS)), *option]) == 2
    shown = capsys.readouterr()
    assert "a Chrome trace gives totals" in shown.err and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "is not a Chrome trace"),
        (b'{"traceEvents": []}', "has no [memory] events"),
        (
            b'{"traceEvents": [{"name": "[memory]", "ts": 1, "args": {"Device Type": 1}}]}',
            "is not a Chrome trace of the PyTorch profiler: KeyError 'Addr'",
        ),
        (b"[1, 2]", "is not a Chrome trace"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(InputError) as error:
        load_trace(tmp_path / "t.json")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b"{}")[:-9] + b"123456789")
    with pytest.raises(InputError, match=r"is not a Chrome trace|cannot be read"):
        load_trace(tmp_path / "t.json.gz")
