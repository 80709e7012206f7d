"""memsim from Python: simulate, compare, replay, load_trace. Each is a few lines; the work is done further down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memsim.results.answers import Timeline
from memsim.results.side_by_side import Comparison, side_by_side
from memsim.run.job import Run
from memsim.simulation import pipeline
from memsim.tape import Tape
from memsim.timeline.curves import Curves
from memsim.traces import replay as replaying
from memsim.traces.load import load_trace as load_trace
from memsim.traces.trace import Trace


def simulate(run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None) -> Timeline:
    """What the Run's training steps do to GPU memory, event by event.

    other_order: the other way round, where the framework goes through a Python set of names, whose order differs from
    process to process (Gemma 3).
    strict: a model_type that memsim does not know is refused; else it is taken for a Llama where its fields are
    Llama's, with a warning.
    measured_step: seconds that a step takes in truth, which calibrates the efficiencies of the time estimate.
    Raises InputError, Unsupported for what memsim cannot simulate yet, and Unreachable where no checkpointing fits its
    budget.
    """
    if isinstance(run.checkpointing, dict) and "budget" in run.checkpointing:
        from memsim.search.budget import simulate_within  # scipy is slow to import, and few runs have a budget

        return simulate_within(run, other_order, strict, measured_step)
    return pipeline.simulate(run, other_order, strict, measured_step)


def compare(
    runs: Iterable[Run | Curves], labels: Sequence[str] | None = None, title: str = "", command: str = ""
) -> Comparison:
    """Simulates Runs (Timelines stay as they are) and sets them side by side. Labels are the runs' names where none are
    given.
    """
    timelines = [item if isinstance(item, Curves) else simulate(item) for item in runs]
    return side_by_side(timelines, labels, title, command)


def replay(
    tape: Tape | Trace, allocator: str | None = None, device_memory: int | str | None = None, torch: str | None = None
) -> Timeline:
    """The Timeline of the same requests under a setting string (default: the trace's) on a device (bytes or "24GiB";
    default: the trace's, or unlimited).

    Raises InputError for what PyTorch refuses.
    """
    return Timeline.of(replaying.replay(tape, allocator, device_memory, torch))
