"""Files in and out: JSON that is no larger than its text says, and files that are whole or not there, written without a
name, or beside their path, and put in its place once they are complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from memsim.errors import InputError

# Bytes that a JSON text may build: so many, or so many for each of its own. A profiler's trace takes some seven.
MOST_BUILT, BUILT_EACH = 1 << 28, 16
CONTAINER, VALUE = 72, 96  # bytes of an empty list, and of a value in a mapping, with its key
# Bytes that a packed text may unpack to: so many, or so many for each of its own. JSON is packed to a tenth.
MOST_UNPACKED, UNPACKED_EACH = 1 << 26, 32


def load_json(data: bytes) -> object:
    """What the JSON text says. Raises ValueError, also for a text that would take far more memory than its size tells,
    and for one that is nested too deep.
    """
    opened = data.count(b"{") + data.count(b"[")
    if CONTAINER * opened + VALUE * data.count(b",") > max(MOST_BUILT, BUILT_EACH * len(data)):
        raise ValueError("would take far more memory than a text of its size holds")
    try:
        found: object = json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    return found


def unpacked(path: Path) -> bytes:
    """The bytes of a file, or of what gzip packed into it. Raises OSError and ValueError."""
    with path.open("rb") as file:
        data = file.read()
    if not data.startswith(b"\x1f\x8b"):
        return data
    most, parts, size = max(MOST_UNPACKED, UNPACKED_EACH * len(data)), [], 0
    while data:
        machine = zlib.decompressobj(wbits=31)
        parts.append(machine.decompress(data, most + 1 - size))
        size += len(parts[-1])
        if size > most:
            raise ValueError(f"unpacks to far more than a file of its size holds ({most} bytes)")
        if not machine.eof:
            raise ValueError("is cut off")
        data = machine.unused_data.lstrip(b"\0")
    return b"".join(parts)


@contextmanager
def beside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which takes the path's place at the end; whoever is killed before leaves nothing, where
    the system can make files without a name. Raises InputError, naming the path, where the file cannot be.
    """
    try:
        nameless = _nameless(path.parent)
        if nameless is None:
            with _named(path) as file:
                yield file
        else:
            with nameless:
                yield nameless
                nameless.flush()
                _give_name(nameless, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; name a file in a folder that exists, is writable "
            "and has room"
        ) from None


@contextmanager
def _named(path: Path) -> Iterator[IO[bytes]]:
    file = tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=_prefix(path), delete=False)  # noqa: SIM115
    try:
        with file:
            yield file
        os.chmod(file.name, 0o666 & ~_umask())
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise


def _nameless(folder: Path) -> IO[bytes] | None:
    """A file in the folder without a name, or None where the system makes none."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir("/proc/self/fd"):
        return None
    with suppress(OSError):
        return os.fdopen(os.open(folder, flag | os.O_RDWR, 0o666), "w+b")
    return None


def _give_name(file: IO[bytes], path: Path) -> None:
    """Gives the file without a name the path's, or its contents to one with a name where the system cannot."""
    name = tempfile.mktemp(dir=path.parent, prefix=_prefix(path))  # link() takes no name that exists
    try:
        # the folder's descriptor is there because only with one Python follows the link to the file itself
        os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=file.fileno(), follow_symlinks=True)
    except OSError:
        file.seek(0)
        with _named(path) as copy:
            shutil.copyfileobj(file, copy)
        return
    try:
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _prefix(path: Path) -> str:
    return f".{path.name.encode()[:100].decode(errors='ignore')}."


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask
