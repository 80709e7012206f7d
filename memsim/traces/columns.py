"""Whole numbers out of foreign data: what is no whole number, or too large for one, is refused by its row and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError, show

MOST_ADDRESS = 2**62  # no address is so large, and sums of an address and a size stay within 64 bits
MOST_HANDLE = 2**63 - 1  # of streams
MOST_SIZE = 2**58 - 1  # bytes of a request, as the allocator takes it
MOST_HELD = 2**50  # bytes of a segment: 1 PiB, more than any device has


def whole(
    rows: Sequence[Mapping[str, Any]], key: str, most: int, where: str, default: int | None = None
) -> NDArray[np.int64]:
    """[n] the key of each row, from 0 to `most`; `default` where it is missing. Raises InputError: `where`, the row's
    number, the key.
    """
    values = [row.get(key, default) for row in rows]
    if set(map(type, values)) - {int} or (values and (min(values) < 0 or max(values) > most)):
        at, value = next(
            (at, value)
            for at, value in enumerate(values)
            if type(value) is not int or value < 0 or value > most  # True is none
        )
        missing = value is None and key not in rows[at]
        raise InputError(
            f"{where} {at}: {key}: {'missing' if missing else show(value)}; whole numbers from 0 to {most} are valid"
        )
    return np.array(values, np.int64)


def check_range(column: NDArray[Any], most: int, where: str, key: str) -> NDArray[np.int64]:
    """The column of whole numbers, of whatever type, as int64. Raises InputError, naming the first that is not from 0
    to `most`.
    """
    if len(column) and (int(column.min()) < 0 or int(column.max()) > most):
        at = int(np.flatnonzero((column < 0) | (column > most))[0])
        raise InputError(f"{where} {at}: {key} {int(column[at])} is not in 0 … {most}")
    return column.astype(np.int64)
