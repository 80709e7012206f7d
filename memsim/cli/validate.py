"""What `memsim validate` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from rich.table import Table
from rich.text import Text

from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.cli.running import DONE, NO, simulated_as_recorded
from memsim.errors import InputError
from memsim.units import gib
from memsim.validation import recorded as checks
from memsim.validation.recorded import METRICS, Peak, RanOut, Row, summarize

SHIPPED = ("golden", "held-out")  # folders of recordings in a clone's traces/


def shipped() -> list[Path]:
    """The folders of recordings that ship with memsim's source. Raises InputError where this is no clone.

    The clone is what this file belongs to, or, where memsim was installed from it, the working folder.
    """
    for clone in (Path(__file__).parents[2], Path.cwd()):
        found = [clone / "traces" / name for name in SHIPPED if (clone / "traces" / name).is_dir()]
        if found and (clone / "memsim").is_dir():
            return found
    raise InputError(
        "validate: needs a folder of recorded runs, or --published FILE; in a clone of memsim's source neither is "
        "needed, for recordings ship in its traces/"
    )


def run(folders: Sequence[Path], pattern: str, tolerance: float, events: bool, as_json: bool) -> int:
    """The command; returns its exit code: 1 where a run is past the tolerance. Raises InputError."""
    found = checks.files(folders[0], pattern) if len(folders) == 1 else _matching(folders, pattern)
    console.say_if_cold()
    with console.progress("comparing", len(found)) as advance:
        rows = [advance(checks.check(path, simulated_as_recorded, events)) for path in found]
    if as_json:
        print_json({"runs": [row.to_json() for row in rows], "summary": checks.summarize(rows, tolerance)})
    else:
        screen = console.out()
        screen.print(recorded_table(rows, tolerance), "")
        refused = unsupported_table(rows)
        if refused is not None:
            screen.print(refused, "")
        for line in summary_lines(rows, tolerance):
            screen.print(line, markup=False, soft_wrap=not screen.is_terminal)
    return DONE if checks.passed(rows, tolerance) else NO


def _matching(folders: Sequence[Path], pattern: str) -> list[Path]:
    """The recordings of several folders whose names match, of which some folder may have none."""
    found = [path for folder in folders for path in checks.files(folder) if fnmatch(path.stem, pattern)]
    if not found:
        raise InputError(f"validate: no recording that ships matches {pattern!r}")
    return found


def recorded_table(rows: list[Row], tolerance: float) -> Table:
    """A row a run that is supported: recorded peaks in GiB, errors in percent ("=": equal to the byte)."""
    with_events = any(row.events_equal is not None for row in rows)
    columns = ["run", "reserved GiB", "requested", "allocated", "reserved", "steps", "out of memory"]
    grid = tables.grid(*columns, *(["events"] if with_events else []))
    for row in rows:
        if not row.supported:
            continue
        recorded_peak = row.peaks["peak_reserved"].recorded
        cells = [row.name, "–" if recorded_peak is None else gib(recorded_peak, unit=False)]
        cells += [_error(row.peaks[metric]) for metric in METRICS]
        cells += ["=" if row.steps_exact else "differ", _oom(row.oom)]
        cells += [{True: "=", False: "differ", None: "–"}[row.events_equal]] if with_events else []
        grid.add_row(*[Text(cell) for cell in cells], style="" if row.within(tolerance) else "bold red")
    return grid


def unsupported_table(rows: list[Row]) -> Table | None:
    """The runs that are not supported, each with the reason; None where there is none."""
    refused = [row for row in rows if not row.supported]
    if not refused:
        return None
    grid = tables.grid("not supported", "reason", left=2)
    for row in refused:
        grid.add_row(Text(row.name), Text(row.reason or ""))
    return grid


def summary_lines(rows: list[Row], tolerance: float) -> list[str]:
    """The summary for people."""
    found = summarize(rows, tolerance)
    lines = [
        f"{found['supported']} of {found['runs']} runs supported, {found['oom_agrees']} of them agree on out of memory."
    ]
    for metric in METRICS:
        worst = found["worst_error"][metric]
        tail = f"worst {worst['percent']:+.3f} % ({worst['name']})" if worst["name"] else "worst 0 %"
        lines.append(f"{metric}: {found['exact'][metric]} of {found['supported']} equal to the byte, {tail}")
    lines.append(f"every value of every step: {found['steps_exact']} of {found['supported']} runs equal")
    if "events_compared" in found:
        lines.append(f"events of steps 0 and 1: {found['events_equal']} of {found['events_compared']} runs equal")
    if found["past_tolerance"]:
        lines.append(f"past the tolerance of {tolerance:g} %, or not agreeing: {', '.join(found['past_tolerance'])}")
    return lines


def _error(peak: Peak) -> str:
    if peak.recorded is None:
        return "–"
    return "=" if peak.exact else f"{peak.error:+.3f} %"


def _oom(outcome: RanOut) -> str:
    words = {True: "yes", False: "no"}
    return (
        words[outcome.recorded]
        if outcome.recorded == outcome.simulated
        else (f"{words[outcome.recorded]}, simulated {words[bool(outcome.simulated)]}")
    )
