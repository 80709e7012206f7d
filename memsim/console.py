"""What every command needs of a terminal and of files: consoles, one waiting line, output that appears whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from memsim.errors import InputError

T = TypeVar("T")
PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe, where nobody can widen the window


def out() -> Console:
    """Results. Plain text without a terminal or with NO_COLOR."""
    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH)


def note(line: str) -> None:
    """A line about what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


def say_if_cold() -> None:
    """Says what the first run on a machine waits for: the compilation of the allocator."""
    from memsim.allocator import caching  # numba is slow to import, and not every command needs it

    source = Path(caching.__file__ or "")
    folder = Path(caching.replay.stats.cache_path)
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
    """A path to write to: a file beside the target that takes its place at the end, so that no half of a report is ever left.

    What is not a file, such as /dev/stdout, is written to as it is.
    """
    target = writable(path)
    if target.exists() and not target.is_file():
        yield target
        return
    beside = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


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
