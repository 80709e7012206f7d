"""The least memory with which something survives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from oplists import Script

from memsim.allocator import Settings, allocate
from memsim.cli.entry import main
from memsim.search.allocators import least_memory
from memsim.search.smallest import smallest
from memsim.traces.load import load_trace
from memsim.units import MIB


@given(limit=st.integers(1, 10**6))
def test_it_finds_the_step(limit: int) -> None:
    found = smallest(lambda memory: memory >= limit * 1000, 0, 10**9 + MIB)
    assert found % MIB == 0 and found >= limit * 1000 > found - MIB


def saved(path: Path) -> Path:
    """20 MiB, and then 30 MiB in a segment of its own while half of the first is free: 21 + 30 MiB of pages, less with
    expandable segments.
    """
    script = Script()
    first, _ = script.alloc(10 * MIB), script.alloc(9 * MIB)
    script.free(first)
    script.alloc(30 * MIB)
    np.savez(path, ops=np.array(script.rows, np.int64), settings=np.array(""), device_memory=np.array(80 << 30))
    return path


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "per_process_memory_fraction:0.5"])
def test_the_least_memory_survives_and_less_does_not(tmp_path: Path, text: str) -> None:
    trace = load_trace(saved(tmp_path / "o.npz"))
    least = least_memory(trace, text)
    settings = Settings.parse(text)
    assert allocate(trace.tape, settings, least).out_of_memory is None
    assert allocate(trace.tape, settings, least - MIB).out_of_memory is not None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(saved(tmp_path / "o.npz"))
    options = ["--allocator", "", "--allocator", "expandable_segments:True", "--smallest-device", "--json"]
    assert main(["replay", path, *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    trace = load_trace(path)
    assert [row["smallest_device"] for row in rows] == [least_memory(trace, row["allocator"]) for row in rows]
    assert main(["replay", path, "--smallest-device"]) == 0
    assert "smallest device GiB" in " ".join(capsys.readouterr().out.split())
