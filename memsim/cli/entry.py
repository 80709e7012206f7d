"""The command line: what each command takes, and `main`. A command's module is imported when the command is called.

Exit codes: 0 answered, 1 the answer is no where a yes was asked for (--must-fit, a recording that differs), 2 the input
is wrong.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from memsim.cli import console
from memsim.errors import InputError, Unreachable

DONE, NO, WRONG = 0, 1, 2
LONGEST, TAIL = 1000, 200  # signs of an error's line, and those of its end
# click's; newer typer carries its own click and names it nowhere public
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

KEYS = "`memsim keys` lists the keys of a run, with their values and defaults."

app = typer.Typer(
    name="memsim",
    help="What a training step will do to GPU memory, event by event, before it is launched.",
    epilog=KEYS,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _names(incomplete: str) -> list[str]:
    """The names that a RUN may begin so, for the shell's completion."""
    from memsim import catalog

    return [name for name in (*catalog.examples(), *catalog.models()) if name.startswith(incomplete)]


RUN_HELP = (
    "A YAML file, a model's config.json, or a name: an example, a model (`memsim models`), or one of the Hugging Face "
    "hub, such as Qwen/Qwen2.5-7B-Instruct."
)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=_names)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of the run, such as batch.sequence=4096. May be repeated."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
MustFitOption = Annotated[bool, typer.Option("--must-fit", help="Exit with 1 where nothing fits the device's memory.")]


def _version(asked: bool) -> None:
    if asked:
        from memsim.version import version

        print(f"memsim {version()}")
        raise typer.Exit


@app.callback()
def memsim_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What a training step will do to GPU memory, event by event, before it is launched."""


@app.command("simulate", epilog=KEYS)
def simulate_command(
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
    must_fit: MustFitOption = False,
    no_cures: Annotated[
        bool, typer.Option("--no-cures", help="Do not try other allocator settings where memory runs out.")
    ] = False,
) -> None:
    """Simulate a run's training steps."""
    from memsim.cli import simulate as command

    code = command.run(run, settings, command.Asked(output, measured, strict, as_json, not no_cures))
    _exit(code if must_fit else DONE)


@app.command("validate", epilog=KEYS)
def validate_command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Recorded runs: NAME.json, and NAME.npz with their events; by default those in a clone's traces/.",
        ),
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
    if folder is not None and published is not None:
        raise InputError("validate: takes a folder of recorded runs or --published FILE, not both")
    if published is not None:
        from memsim.cli import published as comparison

        comparison.run(published, as_json)
    else:
        from memsim.cli import validate as command

        folders = [folder] if folder is not None else command.shipped()
        _exit(command.run(folders, pattern, tolerance, events, as_json))


@app.command("diff", epilog=KEYS)
def diff_command(
    run: RunArgument,
    trace: Annotated[Path, typer.Argument(metavar="TRACE.npz", help="A recording of the same run.")],
    settings: SetOption = None,
    context: Annotated[
        int, typer.Option(metavar="N", min=0, help="Events to show before and after the difference.")
    ] = 8,
    addresses: Annotated[bool, typer.Option("--addresses", help="Compare addresses too.")] = False,
) -> None:
    """Show the first event at which a simulation and a recording part. Exits with 1 where they do."""
    from memsim.cli import diff as command

    _exit(command.run(run, trace, settings, context, addresses))


@app.command("replay", epilog=KEYS)
def replay_command(
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
    device: Annotated[
        int | None,
        typer.Option("--device", metavar="N", min=0, help="Of a snapshot of several devices this one alone."),
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
    from memsim.cli import replay as command

    settings = command.Settings(tuple(allocators or (None,)), device_memory, torch, device)
    _exit(command.run(traces, settings, output, check, smallest, as_json))


@app.command("compare", epilog=KEYS)
def compare_command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="As for `memsim simulate`.", autocompletion=_names)
    ],
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
    must_fit: MustFitOption = False,
) -> None:
    """Simulate several runs side by side: memory against time."""
    from memsim.cli import compare as command

    code = command.run(runs, vary or (), settings or (), output, as_json, as_csv, yes)
    _exit(code if must_fit else DONE)


@app.command("graph", epilog=KEYS)
def graph_command(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file to write.")],
    settings: SetOption = None,
) -> None:
    """Draw the layer graph of a run's decoder layer, with the bytes of each operator."""
    from memsim.cli import graph as command

    command.run(run, settings, output)


@app.command("models", epilog=KEYS)
def models_command(as_json: JsonOption = False) -> None:
    """List the models of the catalogue."""
    from memsim.cli import lists

    lists.models(as_json)


@app.command("devices", epilog=KEYS)
def devices_command(as_json: JsonOption = False) -> None:
    """List the devices of the catalogue."""
    from memsim.cli import lists

    lists.devices(as_json)


@app.command("keys")
def keys_command(as_json: JsonOption = False) -> None:
    """List the keys of a run, with their values and defaults."""
    from memsim.cli import keys

    keys.run(as_json)


@app.command("stacks", epilog=KEYS)
def stacks_command(as_json: JsonOption = False) -> None:
    """List the stacks: versions of the framework, and how they differ."""
    from memsim.cli import lists

    lists.stacks(as_json)


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; no traceback for what a user or a full disk can cause."""
    chosen = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        console.prepare()
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = console.warned  # of every command, also where many runs are simulated at once
            code = app(args=chosen, prog_name="memsim", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        return _wrong(str(error))
    except Unreachable as error:
        console.note(_line(str(error)))
        return NO
    except (MemoryError, RecursionError) as error:
        what = "takes more memory than there is" if isinstance(error, MemoryError) else "is nested too deep"
        return _wrong(f"the input {what}: {' '.join(chosen)}")
    except UsageError as error:
        return _wrong(f"{_said(error)} (see `{_command_of(error)} --help`)")
    except (BrokenPipeError, SystemExit):  # the reader, such as `head`, has seen enough; typer turns that into an exit
        _discard_stdout()
        return DONE
    except OSError as error:
        _discard_stdout()
        return _wrong(f"{error.filename or 'output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else DONE


def _said(error: Exception) -> str:
    return str(error.format_message()) if hasattr(error, "format_message") else str(error)


def _command_of(error: Exception) -> str:
    """The command whose usage was wrong: "memsim simulate"."""
    return str(getattr(getattr(error, "ctx", None), "command_path", "memsim"))


def _discard_stdout() -> None:
    """Lets what is still buffered go nowhere: Python would try again at exit, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _wrong(line: str) -> int:
    console.note(_line(line))
    return WRONG


def _line(text: str) -> str:
    """An error on one line: of a long one its beginning, with the file, and its end, with what is valid."""
    line = f"memsim: {' '.join(text.split())}"
    return line if len(line) <= LONGEST else f"{line[: LONGEST - TAIL]} … {line[-TAIL:]}"
