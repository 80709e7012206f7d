"""Untrusted .npz files: named arrays of the expected kinds, their sizes checked before they are unpacked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memsim.errors import InputError, brief

# Bytes of a file's arrays, unpacked: so many, or so many for each of its own. Recorded events are packed to a tenth.
MOST, MOST_EACH = 1 << 25, 32
LARGEST = 1 << 30  # bytes of one array
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy writes them
KINDS = {"iu": "whole numbers", "U": "names"}
Kind = tuple[str, int]  # of numbers or names, and the number of dimensions


def names_in(path: Path) -> tuple[str, ...]:
    """The arrays in the file; none where it is no archive."""
    try:
        with zipfile.ZipFile(path) as file:
            return tuple(name.removesuffix(".npy") for name in file.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ()  # whoever loads it says what is wrong


def load_arrays(path: Path, what: str, needed: Mapping[str, Kind], others: Mapping[str, Kind] = {}) -> dict[str, Any]:
    """The needed arrays by name, and those of the others that are there. Nothing in the file is executed. Raises
    InputError, which calls the file a `what`.
    """
    listed = ", ".join(needed)
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile) or file.zip is None:
            raise InputError(f"{path}: is a single array; {what} is an .npz with {listed}")
        with file:
            present = {name.removesuffix(".npy") for name in file.zip.namelist()}
            for key in needed:
                if key not in present:
                    raise InputError(f"{path}: {key}: missing; {what} has {listed}")
            wanted = {**needed, **{key: kind for key, kind in others.items() if key in present}}
            _check_sizes(path, file.zip, wanted)
            found = {key: file[key] for key in wanted}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or brief(str(error))}") from error
    except (
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        SyntaxError,
        MemoryError,
        OverflowError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
        AttributeError,
        IndexError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # numpy's advice to load pickles is none for a stranger's file
        words = "" if "pickle" in str(error) else brief(str(error))
        raise InputError(f"{path}: is not {what} (.npz){f': {words}' if words else ''}") from error
    for key, (kind, dimensions) in wanted.items():
        _check_kind(path, key, found[key], kind, dimensions)
    return found


def _check_sizes(path: Path, archive: zipfile.ZipFile, keys: Iterable[str]) -> None:
    """Raises InputError where the arrays would take far more memory than their file takes on the disk."""
    total = 0
    for key in keys:
        info = archive.NameToInfo.get(f"{key}.npy") or archive.getinfo(key)
        if info.compress_type not in PACKED:
            raise InputError(f"{path}: {key}: is packed in a way that numpy does not write")
        if info.file_size > LARGEST:
            raise InputError(f"{path}: {key}: larger than {LARGEST} bytes, which no recording is")
        total += info.file_size
    most = max(MOST, MOST_EACH * path.stat().st_size)
    if total > most:
        raise InputError(
            f"{path}: its arrays take {total} bytes unpacked, far more than a file of its size holds ({most})"
        )


def _check_kind(path: Path, key: str, array: object, kind: str, dimensions: int) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {key}: is not an array")
    if array.dtype.kind not in kind or array.ndim != dimensions:
        single = {"iu": "a whole number", "U": "text"}[kind]
        words = single if not dimensions else f"{'a list' if dimensions == 1 else 'a table'} of {KINDS[kind]}"
        raise InputError(
            f"{path}: {key}: is not {words} (it has shape {array.shape} and type {brief(str(array.dtype), 40)})"
        )
