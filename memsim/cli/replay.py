"""What `memsim replay` does and prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from memsim.api import replay
from memsim.cli import console, tables
from memsim.errors import InputError, visible
from memsim.results.write import SUFFIXES, write
from memsim.search import allocators as whatif
from memsim.search.allocators import Outcome
from memsim.traces.load import load_trace
from memsim.traces.replay import Agreement, check
from memsim.traces.trace import Trace


def run(
    paths: Sequence[Path],
    allocators: Sequence[str] | None,
    device_memory: str | None,
    torch: str | None,
    output: Path | None,
    checks: bool,
    smallest: bool,
    as_json: bool,
) -> int:
    """The command; returns its exit code. Raises InputError."""
    chosen: list[str | None] = list(allocators) if allocators else [None]
    if checks and (allocators or output or smallest):
        raise InputError(
            "--check compares under the trace's own settings: it goes with --torch, --device-memory and --json only"
        )
    suffix = ""
    if output is not None:
        suffix = console.output(output, SUFFIXES, [*paths, *(path.with_suffix(".json") for path in paths)])
        if len(paths) * len(chosen) != 1:
            raise InputError(
                f"{output}: one trace under one setting is written; {len(paths)} traces and {len(chosen)} settings "
                "are given"
            )
    if checks:
        return _check(paths, device_memory, torch, as_json)
    rows = []
    loaded = [_load(path) for path in paths] if len(paths) == 1 else []
    console.say_if_cold()
    with console.progress("replaying", len(paths) * len(chosen)) as advance:
        for path in paths:
            trace = loaded[0] if loaded else load_trace(path)
            with _naming(path):
                rows += [advance(whatif.outcome(trace, text, device_memory, torch, smallest)) for text in chosen]
    if output is not None:
        with console.written(output) as place:
            write(replay(trace, chosen[0], device_memory, torch), place, suffix)
        console.note(f"memsim: wrote {output}")
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        console.out().print(settings_table(rows))
    return 1 if any(row.out_of_memory_event is not None for row in rows) else 0


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors that show only once the trace is replayed name its file too."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _load(path: Path) -> Trace:
    with console.reading(path) as watch:
        return load_trace(path, watch=watch)


def _check(paths: Sequence[Path], device_memory: str | None, torch: str | None, as_json: bool) -> int:
    found: list[Agreement] = []
    with console.progress("comparing", len(paths)) as advance:
        for path in paths:
            trace = load_trace(path, device_memory)
            if not found:
                console.say_if_cold()
            with _naming(path):
                found.append(advance(check(trace, torch)))
    if as_json:
        print(json.dumps([vars(row) for row in found], indent=1))
    else:
        for row in found:
            where = "" if row.first is None else f", first difference at event {row.first}"
            print(visible(f"{row.source}: {row.agree} of {row.compared} agree (rules of torch {row.torch}){where}"))
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
            Text(row.source.rsplit("/", 1)[-1]),
            Text(row.allocator or "default"),
            *sizes,
            str(row.driver_calls),
            str(row.retries),
            failed,
            *last,
        )
    return made
