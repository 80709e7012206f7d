"""What `memsim replay` does and prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from memsim.api import compare, replay
from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.errors import InputError, visible
from memsim.results.answers import Timeline
from memsim.results.side_by_side import Comparison
from memsim.results.write import SUFFIXES, write
from memsim.search import allocators as whatif
from memsim.search.allocators import Outcome
from memsim.traces.load import load_traces
from memsim.traces.pickles import Watch
from memsim.traces.replay import Agreement, check
from memsim.traces.trace import Trace


@dataclass(frozen=True)
class Settings:
    """What the traces are replayed under."""

    allocators: tuple[str | None, ...]  # None: the trace's own
    device_memory: str | None
    torch: str | None
    device: int | None  # of a snapshot of several; None: each


def run(
    paths: Sequence[Path], settings: Settings, output: Path | None, checks: bool, smallest: bool, as_json: bool
) -> int:
    """The command; returns its exit code. Raises InputError."""
    if checks and (settings.allocators != (None,) or output or smallest):
        raise InputError(
            "--check compares under the trace's own settings: it goes with --torch, --device-memory, --device and "
            "--json only"
        )
    suffix = ""
    if output is not None:
        suffix = console.output(output, SUFFIXES, [*paths, *(path.with_suffix(".json") for path in paths)])
        _check_single(output, len(paths) * len(settings.allocators), "traces and settings")
    if checks:
        return _check(paths, settings, as_json)
    rows: list[Outcome] = []
    replays: list[tuple[Trace, Timeline]] = []
    with console.progress("replaying", len(paths) * len(settings.allocators)) as advance:
        for path in paths:
            with console.reading(path) if len(paths) == 1 else nullcontext() as watch:
                traces = _load(path, settings, watch=watch)
            if output is not None:
                _check_single(output, len(traces), "devices (--device N chooses one)")
            if not rows:
                console.say_if_cold()
            with _naming(path):
                for text in settings.allocators:
                    for trace in traces:
                        rows.append(whatif.outcome(trace, text, settings.device_memory, settings.torch, smallest))
                        if output is not None:
                            replays.append((trace, replay(trace, text, settings.device_memory, settings.torch)))
                    advance(text)
    if output is not None:
        with console.written(output) as place:
            if len(replays) == 1:
                write(replays[0][1], place, suffix)
            else:
                _side_by_side(replays, paths, settings, output.name).write_html(place)
        console.note(f"memsim: wrote {output}")
    if as_json:
        print_json({"rows": [row.to_json() for row in rows]})
    else:
        console.out().print(settings_table(rows))
    return 1 if any(row.out_of_memory_event is not None for row in rows) else 0


def _check_single(output: Path, count: int, of_what: str) -> None:
    """Raises InputError where several replays would go to a file that holds one."""
    if count > 1 and output.suffix != ".html":
        raise InputError(
            f"{output}: holds one replay, and there are {count} {of_what}; .html sets several side by side"
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors that show only once the trace is replayed name its file too."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _load(path: Path, settings: Settings, memory: str | None = None, watch: Watch | None = None) -> tuple[Trace, ...]:
    """The traces of a file: one, or of a snapshot one for each of its devices. Raises InputError."""
    traces = load_traces(path, memory, watch)
    if settings.device is None:
        return traces
    chosen = tuple(trace for trace in traces if trace.device == settings.device)
    if not chosen:
        known = ", ".join(str(trace.device) for trace in traces if trace.device is not None)
        has = f"has events of the devices {known}" if known else "has events of one device"
        raise InputError(f"--device: {settings.device}: {path} {has}")
    return chosen


def _side_by_side(
    replays: Sequence[tuple[Trace, Timeline]], paths: Sequence[Path], settings: Settings, name: str
) -> Comparison:
    """The replays as a comparison, each by what tells it from the others."""
    labels = []
    for trace, timeline in replays:
        words = [Path(trace.source).name] if len(paths) > 1 else []
        words += [] if trace.device is None or settings.device is not None else [f"device {trace.device}"]
        words += [timeline.about.allocator or "default"] if len(settings.allocators) > 1 else []
        labels.append(" · ".join(words))
    argv = ["memsim", "replay", *map(str, paths)]
    argv += [part for text in settings.allocators if text is not None for part in ("--allocator", text)]
    for option, value in (
        ("--device-memory", settings.device_memory),
        ("--torch", settings.torch),
        ("--device", settings.device),
    ):
        argv += [] if value is None else [option, str(value)]
    title = " and ".join(dict.fromkeys(path.name for path in paths))
    return compare([timeline for _, timeline in replays], labels, title, shlex.join([*argv, "-o", name]))


def _check(paths: Sequence[Path], settings: Settings, as_json: bool) -> int:
    found: list[Agreement] = []
    with console.progress("comparing", len(paths)) as advance:
        for path in paths:
            traces = _load(path, settings, settings.device_memory)
            if not found:
                console.say_if_cold()
            with _naming(path):
                found += [check(trace, settings.torch) for trace in traces]
            advance(path)
    if as_json:
        print_json({"rows": [vars(row) for row in found]})
    else:
        for row in found:
            source = row.source if row.device is None else f"{row.source}, device {row.device}"
            where = "" if row.first is None else f", first difference at event {row.first}"
            words = f"{source}: {row.agree} of {row.compared} agree (rules of torch {row.torch}){where}"
            print(visible(words))
    return 0 if all(row.agree == row.compared for row in found) else 1


def settings_table(rows: list[Outcome]) -> Table:
    """The rows as a table, sizes in GiB."""
    searched = any(row.smallest_device is not None for row in rows)
    columns = [
        "peak reserved GiB",
        "peak allocated GiB",
        "unallocated at peak GiB",
        "driver calls",
        "retries",
        "out of memory at event",
    ]
    made = tables.grid("trace", "allocator", *columns, *(["smallest device GiB"] if searched else []), left=2)
    for row in rows:
        sizes = [f"{size / 2**30:.3f}" for size in (row.peak_reserved, row.peak_allocated, row.unallocated_at_peak)]
        failed = "-" if row.out_of_memory_event is None else str(row.out_of_memory_event)
        last = [f"{row.smallest_device / 2**30:.3f}"] if searched and row.smallest_device is not None else []
        made.add_row(
            Text(Path(row.source).name + ("" if row.device is None else f", device {row.device}")),
            Text(row.allocator or "default"),
            *sizes,
            str(row.driver_calls),
            str(row.retries),
            failed,
            *last,
        )
    return made
