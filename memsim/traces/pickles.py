"""Reads untrusted pickles: plain containers, strings, numbers, bytes, None and booleans. Anything that names a global
is refused.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from memsim.errors import InputError

Watch = Callable[[BinaryIO], BinaryIO]  # takes a file and returns one, such as a file that shows how far it was read


class _Plain(pickle.Unpickler):
    """Refuses every global, so that nothing in the file can be called."""

    def find_class(self, module: str, name: str) -> object:
        """Raises InputError, always."""
        raise InputError(f"names the global {module}.{name}; only plain containers, strings and numbers are loaded")

    def persistent_load(self, pid: object) -> object:
        """Raises InputError, always."""
        raise InputError(
            "refers to an object outside of the file; only plain containers, strings and numbers are loaded"
        )


def load_plain(path: Path, watch: Watch | None = None) -> object:
    """Returns the object in the file, which is read through `watch`. Raises InputError, one line, where the file is cut
    off, foreign, or more than plain data.
    """
    collects = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage
    try:
        with path.open("rb") as file:
            return _Plain(file if watch is None else watch(file)).load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle raises nearly anything
        words = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: is not a whole pickle: {words or type(error).__name__}") from error
    finally:
        if collects:
            gc.enable()
