"""What every command needs of a terminal and of files: consoles, one waiting line, paths that can be written to."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from rich.console import Console, Group
from rich.progress import Progress
from rich.text import Text

from memsim.errors import InputError, visible

T = TypeVar("T")
LARGE = 8 << 20  # bytes of a file that takes a moment to read
SCHEMA = 1  # of what commands print as JSON: another number where a key goes or means something else (docs/schema)
PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe, where nobody can widen the window


# What a terminal without these signs gets in their place.
PLAIN = str.maketrans(
    {"…": "...", "–": "-", "—": "-", "−": "-", "·": "|", "×": "x", "“": '"', "”": '"', "’": "'", "≤": "<=", "≥": ">="}
    | {"µ": "u", "²": "2", "→": "->", "─": "-", "━": "-", "│": "|", "³": "3"}
)


class Screen(Console):
    """rich's console for words that come from files: a terminal obeys nothing in them, nor in tables.Grid's."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*[_shown(item) for item in objects], **options)


def _shown(item: Any) -> Any:
    if isinstance(item, str):
        return visible(item)
    if isinstance(item, Text):
        return harmless(item)
    return Group(*[_shown(inner) for inner in item.renderables]) if isinstance(item, Group) else item


def harmless(text: Text) -> Text:
    """The text with escapes for what a terminal would obey."""
    return text if text.plain.isprintable() else Text(visible(text.plain), style=text.style)


def out() -> Console:
    """Results. Plain text without a terminal or with NO_COLOR."""
    return Screen(
        highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    )


def note(line: str) -> None:
    """A line about what is going on, on stderr, if that is open."""
    if sys.stderr is not None:
        print(visible(line), file=sys.stderr, flush=True)


def warned(message: Warning | str, *place: object, **more: object) -> None:
    """Shows a warning as a line on stderr, without the place in memsim that Python would name."""
    note(f"memsim: warning: {message}")


def prepare() -> None:
    """Makes both streams take any sign: a file's name may hold any bytes, and some terminals have no more than ASCII.
    Raises InputError where stdout is closed.
    """
    if sys.stdout is None:
        raise InputError("stdout is closed; send it to /dev/null if nobody is to read it")
    codecs.register_error("memsim", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="memsim")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """For codecs: signs that an encoding lacks, as plain ones or as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end].translate(PLAIN)
    return signs.encode("ascii", "backslashreplace").decode(), error.end


def watched() -> bool:
    """Whether someone sees stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def say_if_cold() -> None:
    """Says what the first run on a machine waits for: the compilation of the allocator."""
    from memsim.allocator.compiled import caching  # numba is slow to import, and not every command needs it

    source = Path(caching.__file__ or "")
    folder = Path(caching.replay.stats.cache_path or os.devnull)  # the latter where nothing can be cached
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


def output(path: Path, suffixes: Sequence[str], inputs: Iterable[str | Path]) -> str:
    """The suffix of a file to write, once it is clear that one of these can be written there and that no input would be
    lost. Raises InputError.
    """
    target = writable(path)
    if any(_same(target, Path(source)) for source in inputs):
        raise InputError(f"{path}: is an input of this command, and would be lost; name another file to write")
    suffix = path.suffix.lower()
    if target.exists() and not target.is_file():  # such as /dev/stdout
        return suffix if suffix in suffixes else suffixes[0]
    if suffix not in suffixes:
        raise InputError(f"{path}: does not end in {' or '.join(suffixes)}, which is what this command writes")
    return suffix


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # there is no such file
        return False


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
    if not watched():
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
    if not watched() or not path.is_file() or path.stat().st_size < LARGE:
        yield lambda file: file
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield lambda file: bar.wrap_file(file, total=path.stat().st_size, description=f"reading {path.name}")


def print_json(data: Mapping[str, object]) -> None:
    """Prints JSON on stdout, with the number of its schema (docs/schema)."""
    print(json.dumps({"schema": SCHEMA, **data}, indent=1))
