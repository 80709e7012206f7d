"""What every command needs of a terminal and of files: consoles, one waiting line, paths that can be written to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, TypeVar

from rich.console import Console
from rich.progress import Progress

from memsim.errors import InputError

T = TypeVar("T")
LARGE = 8 << 20  # bytes of a file that takes a moment to read
SCHEMA = 1  # of what commands print as JSON: another number where a key goes or means something else (docs/schema)
PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe, where nobody can widen the window


def out() -> Console:
    """Results. Plain text without a terminal or with NO_COLOR."""
    return Console(
        highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    )


def note(line: str) -> None:
    """A line about what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


def say_if_cold() -> None:
    """Says what the first run on a machine waits for: the compilation of the allocator."""
    from memsim.allocator.compiled import caching  # numba is slow to import, and not every command needs it

    source = Path(caching.__file__ or "")
    folder = Path(caching.replay.stats.cache_path or "")
    compiled = [index.stat().st_mtime for index in folder.glob(f"{source.stem}.replay-*.nbi")]
    if not compiled or max(compiled) < source.stat().st_mtime:
        note("memsim: compiling the allocator, once on this machine (about ten seconds) …")


def writable(path: Path) -> Path:
    """The path, followed through links, once it is clear that a file can be made there. Raises InputError."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path}: is a folder; name a file to write")
    if not target.parent.is_dir():
        raise InputError(f"{path}: cannot be written: {target.parent} is not a folder")
    probe = target if target.exists() and not target.is_file() else target.parent
    if not os.access(probe, os.W_OK):
        raise InputError(f"{path}: cannot be written: no permission to write to {probe}")
    return target


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path for a page to be written to. Pages are written beside their path and renamed, so what is not a file, such
    as /dev/stdout, gets a copy.
    """
    target = writable(path)
    if target.is_file() or not target.exists():
        yield target
        return
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        yield page
        with target.open("wb") as file:
            file.write(page.read_bytes())


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[T], T]]:
    """A bar on stderr while someone watches; yields a function that takes each finished item and gives it back."""
    if not sys.stderr.isatty():
        yield lambda item: item
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(item: T) -> T:
            bar.advance(task)
            return item

        yield advance


@contextmanager
def reading(path: Path) -> Iterator[Callable[[BinaryIO], BinaryIO]]:
    """A bar on stderr of how far a large file was read, while someone watches; yields what to read it through."""
    if not sys.stderr.isatty() or not path.is_file() or path.stat().st_size < LARGE:
        yield lambda file: file
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield lambda file: bar.wrap_file(file, total=path.stat().st_size, description=f"reading {path.name}")


def print_json(data: Mapping[str, object]) -> None:
    """Prints JSON on stdout, with the number of its schema (docs/schema)."""
    print(json.dumps({"schema": SCHEMA, **data}, indent=1))
