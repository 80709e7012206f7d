"""Files that are whole or not there: written beside their path, and renamed once they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from memsim.errors import InputError


@contextmanager
def beside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which takes the path's place at the end. Raises InputError, naming the path, where that
    cannot be.
    """
    try:
        file = tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name[:100]}.", delete=False)  # noqa: SIM115
        try:
            with file:
                yield file
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; name a file in a folder that exists, is writable "
            "and has room"
        ) from None


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask
