"""What `memsim simulate` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.cli.running import DONE, NO, inputs_of, loaded, simulated
from memsim.errors import InputError
from memsim.results.write import SUFFIXES, write
from memsim.search.cures import with_cures
from memsim.units import read_seconds


@dataclass(frozen=True)
class Asked:
    """What is asked of a simulation beside the Run."""

    output: Path | None = None
    measured: str | None = None  # what a step takes in truth, such as "1.83s"
    strict: bool = False
    as_json: bool = False
    cures: bool = True  # whether allocator settings are tried where memory runs out


def run(source: str, settings: Sequence[str] | None, asked: Asked) -> int:
    """The command; returns 1 where the Run is out of memory, else 0. Raises InputError."""
    output, measured = asked.output, asked.measured
    job = loaded(source, settings)
    suffix = console.output(output, SUFFIXES, inputs_of(source, job)) if output is not None else ""
    timeline = simulated(job, strict=asked.strict, measured_step=_seconds(measured))
    if asked.cures:
        timeline = with_cures(job, timeline)
    if measured is not None and timeline.about.rates is not None:
        console.note(f"memsim: calibrated: {timeline.about.rates.efficiency.as_settings()}")
    if output is not None:
        with console.written(output) as path:
            write(timeline, path, suffix)
    if timeline.about.note:
        console.note(f"memsim: {timeline.about.note}")
    if asked.as_json:
        print_json(timeline.to_json())
    else:
        screen = console.out()
        screen.print(timeline.headline(), markup=False, soft_wrap=not screen.is_terminal)
        if timeline.steps_needed:
            screen.print(tables.steps(timeline))
    if output is not None:
        console.note(f"memsim: wrote {output}")
    return NO if timeline.out_of_memory else DONE


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else read_seconds(text)
    except ValueError as error:
        raise InputError(f"--measured-step: {error}") from None
