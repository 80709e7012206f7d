"""What a real H100 did, against simulations of the same runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memsim.api import simulate
from memsim.run.job import Run
from memsim.traces import recorder
from memsim.traces.recorder import ALLOC, FREE_REQUESTED
from memsim.validation.diff import align
from memsim.validation.recorded import check, run_of
from memsim.validation.sequences import EventSequence

FOLDER = Path(__file__).parents[1] / "traces" / "h200"
# of families that the stack is not held to: real and virtual GPU alone are compared
UNHELD = {"gpt-oss-small", "opt-1.3b-full", "t5-base-full"}
REAL = [path for path in sorted((FOLDER / "real").glob("*.json")) if path.stem not in UNHELD]
VIRTUAL = [path for path in sorted((FOLDER / "virtual").glob("*.json")) if path.stem not in UNHELD]
CUDNN = {"vit-base-full", "vit-base-fp32"}  # whose workspace of a convolution the virtual GPU does not know
# in which autocast's cache, a hash table of addresses, dies
ANOTHER_ORDER = {"llama3.2-1b-qlora-ckpt", "mistral-7b-qlora-ckpt"}


def requests(events: EventSequence) -> NDArray[np.int64]:
    """Bytes of every allocation, and of every free as a negative number, in order."""
    kept = np.isin(events.action, (ALLOC, FREE_REQUESTED))
    return np.where(events.action == ALLOC, events.bytes, -events.bytes)[kept]


def test_recordings_ship() -> None:
    assert len(REAL) == len(VIRTUAL) == 33
    assert all(json.loads(path.read_text())["device"] == "NVIDIA H100 80GB HBM3" for path in REAL)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_requests_are_those_of_the_real_gpu(path: Path) -> None:
    """Every allocation and every free, in order, with its bytes; what PyTorch asked for at its peak, to the byte; what
    the driver gave to 0.3 %.
    """
    timeline = simulate(Run.load(run_of(json.loads(path.read_text()))))
    found = align(timeline, recorder.load(path.with_suffix(".npz")))
    simulated, real = requests(found.simulated), requests(found.recorded)
    if path.stem in ANOTHER_ORDER:
        simulated, real = np.sort(simulated), np.sort(real)
    assert path.stem in CUDNN or np.array_equal(simulated, real)
    steps = json.loads(path.read_text())["steps"]
    assert max(step["peak_requested"] for step in steps) == max(step.peak_requested for step in timeline.steps)
    reserved = max(step["peak_reserved"] for step in steps)
    assert abs(timeline.peak_reserved - reserved) <= reserved * 0.003


@pytest.mark.parametrize("path", VIRTUAL, ids=lambda path: path.stem)
def test_the_same_runs_on_the_virtual_gpu_are_reproduced(path: Path) -> None:
    row = check(path, lambda data, other: simulate(Run.load(data), other), events=True)
    assert row.steps_exact, row.difference
    assert row.events_equal, row.events_difference
