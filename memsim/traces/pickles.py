"""Untrusted pickles: plain containers, strings, numbers, bytes, None and booleans load; anything that names a global
does not, nor what is not bounded by the size of its file.
"""

from __future__ import annotations

import gc
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from memsim.errors import InputError, brief
from memsim.traces.opcodes import BROKEN, NAMES, PLAIN, REASONS, follow

Watch = Callable[[BinaryIO], BinaryIO]  # a file to the same file, such as one that shows how far it was read
LARGEST_FILE = 1 << 32  # bytes; what is in a larger one needs some ten times as much memory
# What a file of n bytes may build: a recorded snapshot takes some 10 bytes for each of its own, and has one value.
MOST_BYTES, BYTES_EACH = 1 << 28, 24
MOST_VALUES, VALUES_EACH = 1e7, 100.0


class _Plain(pickle.Unpickler):
    """Refuses every global, so that nothing in the file can be called."""

    def find_class(self, module: str, name: str) -> object:
        """Raises InputError, always."""
        raise InputError(
            f"names the global {brief(module)}.{brief(name)}; only plain containers, strings and numbers are loaded"
        )

    def persistent_load(self, pid: object) -> object:
        """Raises InputError, always."""
        raise InputError(
            "refers to an object outside of the file; only plain containers, strings and numbers are loaded"
        )


def load_plain(path: Path, watch: Watch | None = None) -> object:
    """The object in the file, which is read through `watch`: containers in containers, a few levels deep, none part of
    itself. Raises InputError, one line, where the file is cut off, foreign or more than plain data, before anything is
    built.
    """
    collects = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage
    try:
        with path.open("rb") as file:
            _check(file)
            return _Plain(file if watch is None else watch(file)).load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise InputError(f"{path}: is not a whole pickle: {brief(str(error)) or type(error).__name__}") from error
    finally:
        if collects:
            gc.enable()


def _check(file: BinaryIO) -> None:
    """Follows what the file would build, without building it. Raises InputError."""
    n = file.seek(0, 2)
    file.seek(0)
    if n == 0:
        raise InputError("is not a whole pickle: is empty")
    if n > LARGEST_FILE:
        raise InputError(f"larger than {LARGEST_FILE >> 30} GiB, which is not loaded")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        data = np.frombuffer(pages, np.uint8)
        reason, place, _ = follow(data, MOST_BYTES + BYTES_EACH * n, MOST_VALUES + VALUES_EACH * n)
        del data  # the pages cannot be closed while something looks at them
    if reason == BROKEN:
        raise InputError(f"is not a whole pickle: ends, or cannot be read, at byte {place:,} of {n:,}")
    if reason not in (PLAIN, NAMES):  # what names something is refused, by its name, when it is loaded
        raise InputError(f"{REASONS[reason]} (byte {place:,} of {n:,})")
