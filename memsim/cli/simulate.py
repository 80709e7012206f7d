"""What `memsim simulate` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.cli import console, tables
from memsim.cli.running import DONE, NO, inputs_of, loaded, print_json, simulated
from memsim.errors import InputError
from memsim.results.write import SUFFIXES, write
from memsim.units import read_seconds


def run(
    source: str, settings: Sequence[str] | None, output: Path | None, measured: str | None, strict: bool, as_json: bool
) -> int:
    """The command; returns its exit code: 1 where the Run is out of memory. Raises InputError."""
    job = loaded(source, settings)
    suffix = console.output(output, SUFFIXES, inputs_of(source, job)) if output is not None else ""
    timeline = simulated(job, strict=strict, measured_step=_seconds(measured))
    if measured is not None and timeline.about.rates is not None:
        console.note(f"memsim: calibrated: {timeline.about.rates.efficiency.as_settings()}")
    if output is not None:
        with console.written(output) as path:
            write(timeline, path, suffix)
    if timeline.about.note:
        console.note(f"memsim: {timeline.about.note}")
    if as_json:
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
