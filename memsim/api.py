"""memsim from Python: simulate, compare, replay. Each is a few lines; the work is done further down.

What a function needs is imported when it is called, so that a replay does not wait for model families.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from memsim.timeline.curves import Curves

if TYPE_CHECKING:
    from memsim.results.answers import Timeline
    from memsim.results.side_by_side import Comparison
    from memsim.run.job import Run
    from memsim.tape import Tape
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
        from memsim.search.budget import simulate_within

        return simulate_within(run, other_order, strict, measured_step)
    from memsim.simulation import pipeline

    return pipeline.simulate(run, other_order, strict, measured_step)


def compare(
    runs: Iterable[Run | Curves], labels: Sequence[str] | None = None, title: str = "", command: str = ""
) -> Comparison:
    """Simulates Runs (Timelines stay as they are) and sets them side by side. Labels are the runs' names where none are
    given. Raises what `simulate` raises.
    """
    from memsim.results.side_by_side import side_by_side

    timelines = [item if isinstance(item, Curves) else simulate(item) for item in runs]
    return side_by_side(timelines, labels, title, command)


def replay(
    tape: Tape | Trace, allocator: str | None = None, device_memory: int | str | None = None, torch: str | None = None
) -> Timeline:
    """The Timeline of the same requests under a setting string (default: the trace's) on a device (bytes or "24GiB";
    default: the trace's, or unlimited).

    Raises InputError for what PyTorch refuses.
    """
    from memsim.results.answers import Timeline
    from memsim.traces import replay as replaying

    return Timeline.of(replaying.replay(tape, allocator, device_memory, torch))
