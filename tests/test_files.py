"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memsim import Run, simulate
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.files import beside
from memsim.traces.write_counters import write_counters
from memsim.traces.write_snapshot import write_snapshot

RUN = {"model": "llama3.2-1b", "steps": 1}


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("before")
    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(InputError, match="t: cannot be written: No space left on device"),
        beside(tmp_path / "t") as file,
    ):
        file.write(b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["t"] and (tmp_path / "t").read_text() == "before"


@pytest.mark.parametrize("write", [write_snapshot, write_counters])
def test_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    timeline = simulate(Run.load(RUN))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"x\.json: cannot be written: No space left"):
        write(timeline, tmp_path / "x.json")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(Run.load("llama3.2-1b-full")).write_html(tmp_path / "a.html")  # what numba compiles, it writes down too
    (tmp_path / "a.html").unlink()
    monkeypatch.setattr(os, "replace", full)
    for name in ("a.pickle", "a.json", "a.html"):
        assert main(["simulate", "llama3.2-1b-full", "-o", str(tmp_path / name)]) == 2
        assert f"{name}: cannot be written: No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
