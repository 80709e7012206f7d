"""The command line: parse, call, print. Exit codes: 0 done, 1 the answer is no, 2 the input is wrong."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import console
from memsim.errors import InputError, Unreachable

if TYPE_CHECKING:
    from memsim.results.answers import Timeline
    from memsim.run.job import Run

DONE, NO, WRONG = 0, 1, 2
# click's; newer typer carries its own click and names it nowhere public
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="memsim",
    help="What a training step will do to GPU memory, event by event, before it is launched.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A YAML file or a name (see `memsim models`).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of the run, such as batch.sequence=4096. May be repeated."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


@app.command()
def simulate(
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write report (.html), snapshot (.pickle), counters (.json)."
        ),
    ] = None,
    as_json: JsonOption = False,
    settings: SetOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a model_type that is not known, even if its fields are Llama's.")
    ] = False,
    measured: Annotated[
        str | None,
        typer.Option(
            "--measured-step", metavar="TIME", help="What a step takes in truth, such as 1.83s: calibrates time."
        ),
    ] = None,
) -> None:
    """Simulate a run's training steps. Exits with 1 where they run out of memory."""
    if output is not None:
        console.writable(output)
    timeline = _simulate(_load(run, settings), strict=strict, measured_step=_seconds(measured))
    if measured is not None and timeline.about.rates is not None:
        console.note(f"memsim: calibrated: {timeline.about.rates.efficiency.as_settings()}")
    if output is not None:
        from memsim.results.write import write

        with console.written(output) as path:
            write(timeline, path, output.suffix)
    if timeline.about.note:
        console.note(f"memsim: {timeline.about.note}")
    if as_json:
        _print_json(timeline.to_json())
    else:
        from memsim.cli import tables

        screen = console.out()
        screen.print(timeline.headline(), markup=False, soft_wrap=not screen.is_terminal)
        if timeline.steps_needed:
            screen.print(tables.steps(timeline))
    if output is not None:
        console.note(f"memsim: wrote {output}")
    if timeline.out_of_memory:
        raise typer.Exit(NO)


@app.command()
def validate(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Recorded runs: NAME.json, and NAME.npz with their events.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option("--published", metavar="FILE", help="Compare with published measurements (.jsonl) instead."),
    ] = None,
    as_json: JsonOption = False,
    tolerance: Annotated[
        float, typer.Option(metavar="PERCENT", min=0.0, help="The largest error of a peak that passes.")
    ] = 0.5,
    pattern: Annotated[
        str, typer.Option("--filter", metavar="GLOB", help="Only runs whose name matches, such as 'qwen*'.")
    ] = "*",
    events: Annotated[
        bool, typer.Option("--events", help="Compare the events of steps 0 and 1 with NAME.npz too.")
    ] = False,
) -> None:
    """Compare simulated with recorded runs. Exits with 1 where one is past the tolerance."""
    from memsim.validation import recorded as checks

    if (folder is None) == (published is None):
        raise InputError("validate: needs a folder of recorded runs, or --published FILE, and not both")
    if folder is None:
        assert published is not None
        _published(published, as_json)
        return
    found = checks.files(folder, pattern)
    console.say_if_cold()
    with console.progress("comparing", len(found)) as advance:
        rows = [advance(checks.check(path, _simulate_recorded, events)) for path in found]
    if as_json:
        _print_json({"runs": [row.to_json() for row in rows], "summary": checks.summarize(rows, tolerance)})
    else:
        screen = console.out()
        screen.print(checks.table(rows, tolerance), "")
        refused = checks.unsupported_table(rows)
        if refused is not None:
            screen.print(refused, "")
        for line in checks.summary_lines(rows, tolerance):
            screen.print(line, markup=False, soft_wrap=not screen.is_terminal)
    if not checks.passed(rows, tolerance):
        raise typer.Exit(NO)


def _published(path: Path, as_json: bool) -> None:
    from memsim.validation import published

    rows = published.load(path)
    console.say_if_cold()
    found = published.compare(rows, _simulate_recorded)
    if as_json:
        _print_json(published.to_json(found))
    else:
        console.out().print(published.table(found))


@app.command()
def diff(
    run: RunArgument,
    trace: Annotated[Path, typer.Argument(metavar="TRACE.npz", help="A recording of the same run.")],
    settings: SetOption = None,
    context: Annotated[
        int, typer.Option(metavar="N", min=0, help="Events to show before and after the difference.")
    ] = 8,
    addresses: Annotated[bool, typer.Option("--addresses", help="Compare addresses too.")] = False,
) -> None:
    """Show the first event at which a simulation and a recording part. Exits with 1 where they do."""
    from memsim.traces import recorder
    from memsim.validation import diff as differences, recorded as validation

    recording = recorder.load(trace)  # before the simulation: a bad file should not have to wait for it
    loaded = _load(run, [*validation.settings_beside(trace), *(settings or [])])
    timeline = _simulate(loaded)
    found = differences.compare(timeline, recording, addresses)
    if not found.equal and differences.is_order_open(timeline):
        other = differences.compare(_simulate(loaded, True), recording, addresses)
        found = other if other.equal else found
    console.out().print(differences.table(found, context, addresses))
    if not found.equal:
        raise typer.Exit(NO)


@app.command()
def replay(
    traces: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="PyTorch snapshots (.pickle), recordings and operation lists (.npz)."),
    ],
    allocators: Annotated[
        list[str] | None,
        typer.Option("--allocator", metavar="SETTINGS", help="As PYTORCH_ALLOC_CONF. May be repeated."),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="Such as 24GiB; else the trace's, or no limit."),
    ] = None,
    torch: Annotated[
        str | None, typer.Option("--torch", metavar="VERSION", help="The PyTorch version whose rules hold.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write report.html, snapshot.pickle or trace.json."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what the trace recorded. Exits with 1 where they differ.")
    ] = False,
    smallest: Annotated[
        bool, typer.Option("--smallest-device", help="Find the least memory with which each setting survives.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded traces under the same or other settings."""
    from memsim.cli import replay as replaying

    code = replaying.run(traces, allocators, device_memory, torch, output, check, smallest, as_json)
    if code:
        raise typer.Exit(code)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="YAML files or names (see `memsim models`).")],
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=A,B", help="Values to try of a key. May be repeated: all combinations."),
    ] = None,
    settings: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the comparison as a page (.html).")
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout and nothing else.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Simulate more than 64 combinations.")] = False,
) -> None:
    """Simulate several runs side by side: memory against time. Exits with 1 where none fits."""
    from memsim.cli import compare as comparing

    code = comparing.run(runs, vary or (), settings or (), output, as_json, as_csv, yes, _simulate)
    if code:
        raise typer.Exit(code)


@app.command()
def graph(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file to write.")],
    settings: SetOption = None,
) -> None:
    """Draw the layer graph of a run's decoder layer, with the bytes of each operator."""
    console.writable(output)
    loaded = _load(run, settings)
    from memsim.report.graph.graph_page import write_graph_html
    from memsim.simulation.build import model_of

    with _naming(loaded), console.written(output) as path:
        write_graph_html(model_of(loaded), path, loaded.model_name)
    console.note(f"memsim: wrote {output}")


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models of the catalogue."""
    from memsim import catalog
    from memsim.cli import tables

    listed = catalog.models()
    if as_json:
        _print_json(tables.plain(listed))
    else:
        screen = console.out()
        screen.print(tables.models(listed))
        if catalog.examples():
            screen.print(f"Runs that ship with memsim: {', '.join(catalog.examples())}", markup=False, soft_wrap=True)


@app.command()
def devices(as_json: JsonOption = False) -> None:
    """List the devices of the catalogue."""
    from memsim import catalog
    from memsim.cli import tables

    listed = catalog.devices()
    if as_json:
        _print_json(tables.plain(listed))
    else:
        console.out().print(tables.devices(listed))


@app.command()
def stacks(as_json: JsonOption = False) -> None:
    """List the stacks: versions of the framework, and how they differ."""
    from memsim.cli import tables
    from memsim.stacks.known import STACKS

    if as_json:
        _print_json(tables.stacks_json(STACKS))
    else:
        for grid in tables.stacks(STACKS):
            console.out().print(grid, "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; no traceback for what a user or a full disk can cause."""
    chosen = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(args=chosen, prog_name="memsim", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        return _wrong(str(error))
    except Unreachable as error:
        console.note(f"memsim: {error}")
        return NO
    except UsageError as error:
        return _wrong(
            f"{error.format_message()} (see `memsim --help`)" if hasattr(error, "format_message") else str(error)
        )
    except (BrokenPipeError, SystemExit):  # the reader, such as `head`, has seen enough; typer turns that into an exit
        _discard_stdout()
        return DONE
    except OSError as error:
        _discard_stdout()
        return _wrong(f"{error.filename or 'output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else DONE


def _load(source: str | Mapping[str, Any], settings: Sequence[str] | None = None) -> Run:
    from memsim.run.job import Run  # pydantic is slow to import, and not every command needs it

    return Run.load(source, set=tuple(settings or ()))


def _seconds(text: str | None) -> float | None:
    from memsim.units import read_seconds

    try:
        return None if text is None else read_seconds(text)
    except ValueError as error:
        raise InputError(f"--measured-step: {error}") from None


def _simulate(
    run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None
) -> Timeline:
    from memsim.api import simulate as simulated

    console.say_if_cold()
    with _naming(run), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        timeline = simulated(run, other_order, strict, measured_step)
    for warning in caught:
        console.note(f"memsim: warning: {warning.message}")
    return timeline


def _simulate_recorded(data: Mapping[str, Any], other_order: bool = False) -> Timeline:
    from memsim.api import simulate as simulated

    return simulated(_load(data), other_order, strict=True)


@contextmanager
def _naming(run: Run) -> Iterator[None]:
    """Errors that show only once the model is built, such as a module name that matches nothing, name the run's file
    too.
    """
    try:
        yield
    except (InputError, Unreachable) as error:
        raise type(error)(f"{run.place}: {error}") from error


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=1))


def _discard_stdout() -> None:
    """Lets what is still buffered go nowhere: Python would try again at exit, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _wrong(line: str) -> int:
    console.note(f"memsim: {' '.join(line.split())}")
    return WRONG
