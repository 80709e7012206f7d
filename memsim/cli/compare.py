"""What `memsim compare` does and prints: the product of runs and varied keys, simulated and set side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.table import Table
from rich.text import Text

from memsim.api import compare
from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.cli.running import inputs_of, simulated
from memsim.errors import InputError
from memsim.results.answers import Timeline
from memsim.results.side_by_side import Comparison
from memsim.run import yamlfile
from memsim.run.job import Run
from memsim.units import duration, gib, percent

MOST = 64  # combinations that are simulated without asking


def run(
    sources: Sequence[str],
    varied: Sequence[str],
    settings: Sequence[str],
    output: Path | None,
    as_json: bool,
    as_csv: bool,
    yes: bool,
) -> int:
    """The command; returns 1 where nothing fits, else 0. Raises InputError."""
    if as_json and as_csv:
        raise InputError("compare: --json and --csv both go to stdout; give one of them")
    keys = [_varied(text) for text in varied]
    count = len(sources)
    for _, values in keys:
        count *= len(values)
    if count > MOST and not yes:
        raise InputError(f"--vary: {count} combinations are more than {MOST}; --yes simulates them")
    if count < 2:
        raise InputError("compare: one run has nothing to be compared with; give two, or --vary KEY=A,B")
    runs, labels, inputs = [], [], []
    for source, chosen in product(sources, product(*[[(key, value) for value in values] for key, values in keys])):
        runs.append(_load(source, settings, chosen))
        inputs += inputs_of(source, runs[-1])
        labels.append(_label(source if len(sources) > 1 or not chosen else "", chosen))
    if output is not None:
        console.output(output, (".html",), inputs)
    console.say_if_cold()
    with console.progress("simulating", count) as advance:
        timelines = [advance(_simulated(loaded, label)) for loaded, label in zip(runs, labels, strict=True)]
    argv = [
        "memsim",
        "compare",
        *sources,
        *(part for text in varied for part in ("--vary", text)),
        *(part for text in settings for part in ("--set", text)),
    ]
    command = f"{shlex.join(argv)} -o {shlex.quote(output.name) if output else 'compare.html'}"
    found = compare(timelines, labels, " and ".join(dict.fromkeys(loaded.name for loaded in runs)), command)
    if output is not None:
        with console.written(output) as path:
            found.write_html(path)
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        print(found.to_csv(), end="")
    else:
        screen = console.out()
        screen.print(" ".join(found.verdict()), markup=False, soft_wrap=not screen.is_terminal)
        screen.print(comparison_table(found, told=len(set(sources)) > 1))
        for case in found.cases:
            if case.timeline.about.note:
                line = f"{case.label}: {case.timeline.about.note}"
                screen.print(line, markup=False, soft_wrap=not screen.is_terminal)
    if output is not None:
        console.note(f"memsim: wrote {output}")
    return 0 if any(case.fits for case in found.cases) else 1


def _varied(text: str) -> tuple[str, list[str]]:
    """KEY=A,B,C: the key, and its values as YAML texts."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise InputError(f"--vary {text!r}: write KEY=A,B, such as checkpointing=none,full")
    listed = yamlfile.parse(f"[{values}]", f"--vary {key.strip()}")
    assert isinstance(listed, list)
    texts = [yamlfile.inline(value) for value in listed]
    repeated = next((value for at, value in enumerate(texts) if value in texts[:at]), None)
    if repeated is not None:
        raise InputError(f"--vary {key.strip()}: {repeated} is given twice")
    return key.strip(), texts


def _load(source: str, settings: Sequence[str], chosen: tuple[tuple[str, str], ...]) -> Run:
    try:
        return Run.load(source, set=(*settings, *(f"{key}={value}" for key, value in chosen)))
    except InputError as error:
        if any(str(error).startswith(f"--set: {key}") for key, _ in chosen):
            raise type(error)(f"--vary{str(error).removeprefix('--set')}") from None
        raise


def _simulated(loaded: Run, label: str) -> Timeline:
    try:
        return simulated(loaded)
    except InputError as error:
        raise type(error)(f"{label}: {error}") from None


def _label(source: str, chosen: tuple[tuple[str, str], ...]) -> str:
    words = [value if len(chosen) == 1 else f"{key.rpartition('.')[2]} {value}" for key, value in chosen]
    return " · ".join([_name(source)] * bool(source) + words)


def _name(source: str) -> str:
    """A file's name without its suffix; any other name as it is, dots and all."""
    path = Path(source)
    return path.stem if path.suffix in (".yaml", ".yml", ".json") else path.name or source


def comparison_table(found: Comparison, told: bool = False) -> Table:
    """The rows: GiB, seconds, and what is best in bold; with `told` also in which facts they differ."""
    told = told and any(found.differences)
    columns = ("fits", "peak reserved GiB", "peak allocated GiB", "step", "tokens/s", "MFU", "recomputation")
    grid = tables.grid("run", *(["differs in"] if told else []), *columns, left=3 if told else 2)
    for case, differences in zip(found.cases, found.differences, strict=True):
        time = case.timeline.step_time
        memory = (
            [gib(case.timeline.peak_reserved, unit=False), gib(case.timeline.peak_allocated, unit=False)]
            if case.known
            else ["-", "-"]
        )
        times = ["-"] * 4
        if time is not None:
            again = f"+{percent(time.overhead)}" if time.recomputation else "-"
            times = [duration(time.total), f"{time.tokens_per_second:,.0f}", percent(time.mfu), again]
        style = "bold" if case is found.cheapest else "" if case.fits else "dim"
        more = [", ".join(f"{key} {value}" for key, value in differences)] if told else []
        fits = "tight" if case.timeline.verdict == "tight" else "yes" if case.fits else "no"
        cells = (case.label, *more, fits, *memory, *times)
        grid.add_row(*[Text(cell) for cell in cells], style=style)
    return grid
