"""Simulations equal recordings: every value of every step, and every event."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.api import simulate
from memsim.run.job import Run
from memsim.traces import recorder
from memsim.validation.diff import align, is_order_open, summary
from memsim.validation.recorded import check, recorded, run_of

TRACES = Path(__file__).parents[1] / "traces"
SHIPPED = sorted(TRACES.glob("*/*.json"))
GOLDEN = sorted((Path(__file__).parents[1] / ".." / "shared" / "golden").glob("results*/*.json"))


def test_recordings_ship() -> None:
    assert len(SHIPPED) >= 20


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recording_is_reproduced(path: Path) -> None:
    row = check(path, lambda data, other: simulate(Run.load(data), other), events=True)
    assert row.supported, row.reason
    assert row.oom.recorded == row.oom.simulated
    assert row.steps_exact, row.difference
    assert row.events_equal, row.events_difference


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_event_of_every_step_is_reproduced(path: Path) -> None:
    """`check` compares events to the end of the second step; here none is left out, up to an out-of-memory."""
    run, recording = Run.load(run_of(recorded(path))), recorder.load(path.with_suffix(".npz"))
    timeline = simulate(run)
    found = align(timeline, recording)
    if not found.equal and is_order_open(timeline):
        found = align(simulate(run, True), recording)
    assert found.equal, summary(found)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_recording_is_reproduced_where_supported(path: Path) -> None:
    row = check(path, lambda data, other: simulate(Run.load(data), other), events=True)
    if not row.supported:
        pytest.skip(str(row.reason))
    assert row.oom.recorded == row.oom.simulated
    assert row.steps_exact, row.difference
    assert row.events_equal, row.events_difference
