"""Sizes as people write them: 24GiB, 80GB, or a number of GiB."""

from __future__ import annotations

import math
import re

from memsim.errors import InputError, show

GIB = 2**30
MIB = 2**20
KIB = 2**10
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


def gib(count: int, unit: bool = True) -> str:
    """Bytes in GiB with about four digits: 139.5, 12.35, 0.412."""
    value = count / GIB
    digits = 1 if abs(value) >= 99.95 else 2 if abs(value) >= 0.995 else 3
    return f"{value:.{digits}f} GiB" if unit else f"{value:.{digits}f}"


def capacity(count: int) -> str:
    """A device's bytes: "80 GiB", "5.90 GiB"."""
    return f"{count // GIB} GiB" if count % GIB == 0 else gib(count)


def size(count: int) -> str:
    """Bytes in the unit that fits: 139.5 GiB, 594.0 MiB, 1.5 KiB, 512 bytes."""
    if abs(count) >= GIB:
        return gib(count)
    if abs(count) >= MIB:
        return f"{count / MIB:.1f} MiB"
    if abs(count) >= KIB:
        return f"{count / KIB:.1f} KiB"
    return f"{count} byte" if count == 1 else f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits: 12.3 s, 4.97 s, 312 ms, 45 µs."""
    if seconds >= 9.995:
        return f"{seconds:.1f} s"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return (
        f"{1e3 * seconds:.0f} ms"
        if seconds >= 0.00995
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 0.0009995
        else f"{1e6 * seconds:.0f} µs"
    )


def percent(ratio: float) -> str:
    """A ratio in percent: "46 %", "1.4 %"."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.1f} %"


def share(part: int, whole: int) -> str:
    """A part of a whole in percent: "97 %", "1.4 %", "<0.1 %"."""
    if whole <= 0 or part <= 0:
        return "0 %"
    percent = 100 * part / whole
    return "<0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


def torch_size(count: int) -> str:
    """Bytes as PyTorch's allocator prints them in its messages."""
    if count <= KIB:
        return f"{count} bytes"
    if count <= MIB:
        return f"{count / KIB:.2f} KiB"
    if count <= GIB:
        return f"{count / MIB:.2f} MiB"
    return f"{count / GIB:.2f} GiB"
