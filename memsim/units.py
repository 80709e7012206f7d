"""Sizes as people write them: 24GiB, 80GB, or a number of GiB."""

from __future__ import annotations

import math
import re

from memsim.errors import InputError
from memsim.run.explain import show

GIB = 2**30
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
LARGEST = 2**50  # 1 PiB; sums of what fits stay far within 64 bits

_SIZE = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")
_BY_LOWER = {unit.lower(): unit for unit in UNITS}


def read_bytes(value: object) -> int:
    """Bytes from a size with a unit ("24GiB", "80GB", "24576 MiB"), or from a plain number, which counts GiB.

    Raises ValueError, in words that fit after the name of a key.
    """
    number = as_float(value)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{show(value)} is not a size; write 24GiB, 80GB or a number of GiB")
        number, unit = float(match[1]), match[2]
        if unit and unit.lower() not in _BY_LOWER:
            raise ValueError(f"{show(value)} has an unknown unit{_nearest(unit)} (units: {', '.join(UNITS)})")
        count = number * (UNITS[_BY_LOWER[unit.lower()]] if unit else GIB)
    elif number is not None:
        count = number * GIB
    else:
        raise ValueError(f"{show(value)} is not a size; write 24GiB, 80GB or a number of GiB")
    if count > LARGEST:
        raise ValueError(f"{show(value)} is more than {LARGEST // 2**40} TiB")
    if not count >= 1:  # or not a number
        raise ValueError(f"{show(value)} is not a positive size; write 24GiB, 80GB or a number of GiB")
    return int(count)


def as_float(value: object) -> float | None:
    """A number as a float, infinite where no float is as large; None where `value` is no number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.copysign(math.inf, 1 if value > 0 else -1)


def _nearest(unit: str) -> str:
    letter = unit[0].upper()
    candidates = [known for known in UNITS if known[0] == letter and known != "B"]
    return f"; did you mean {' or '.join(reversed(candidates))}?" if candidates else ""


def bytes_of(size: int | str | None) -> int | None:
    """Bytes of a device's memory; a string may have a unit. Raises InputError."""
    if not isinstance(size, str):
        return size
    try:
        return read_bytes(size)
    except ValueError as error:
        raise InputError(f"device memory: {error}") from error


_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}


def read_seconds(value: str) -> float:
    """Seconds from "1.83s", "250ms" or a plain number of seconds. Raises ValueError."""
    match = _SIZE.fullmatch(value.strip())
    if match is None or (match[2] or "s") not in _TIMES or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{show(value)} is not a time; write 1.83s, 250ms or a number of seconds")
    return float(match[1]) * _TIMES[match[2] or "s"]
