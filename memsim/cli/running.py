"""What commands that simulate share: a Run from the command line, and its simulation with warnings on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memsim.api import simulate
from memsim.cli import console
from memsim.errors import InputError, Unreachable
from memsim.results.answers import Timeline
from memsim.run.job import Run

DONE, NO = 0, 1  # exit codes


def loaded(source: str | Mapping[str, Any], settings: Sequence[str] | None = None) -> Run:
    """The Run of a file or name, with --set. Raises InputError."""
    return Run.load(source, set=tuple(settings or ()))


def inputs_of(source: str, run: Run) -> list[Path]:
    """The files that a Run was read from, which no output may replace."""
    return [Path(source), *([run.model_file] if run.model_file is not None else [])]


def simulated(
    run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None
) -> Timeline:
    """`memsim.simulate`, with its warnings as lines on stderr. Raises InputError and Unreachable that name the Run."""
    console.say_if_cold()
    with naming(run), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        timeline = simulate(run, other_order, strict, measured_step)
    for warning in caught:
        console.warned(warning.message)
    return timeline


def simulated_as_recorded(data: Mapping[str, Any], other_order: bool = False) -> Timeline:
    """The simulation of a recording's Run."""
    return simulate(loaded(data), other_order, strict=True)


@contextmanager
def naming(run: Run) -> Iterator[None]:
    """Errors that show only once the model is built, such as a module name that matches nothing, name the run's file
    too.
    """
    try:
        yield
    except (InputError, Unreachable) as error:
        raise type(error)(f"{run.place}: {error}") from error
