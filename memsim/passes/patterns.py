"""Regular expressions of users: Python's own, as PEFT takes them, which are stopped where they would never end."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from memsim.errors import InputError, show

LONGEST = 2.0  # seconds for all names together; a match takes some microseconds
SLOW = 0.01  # seconds: what a single name takes counts from here on
_spent: dict[str, float] = {}  # seconds, by pattern


def fullmatch(pattern: str, name: str, key: str) -> bool:
    """Whether the pattern matches the whole name. Raises InputError, naming the key, where it cannot be told."""
    with _limited(pattern, key):
        return re.fullmatch(pattern, name) is not None


def match(pattern: str, name: str, key: str) -> bool:
    """Whether the pattern matches a beginning of the name. Raises InputError as `fullmatch` does."""
    with _limited(pattern, key):
        return re.match(pattern, name) is not None


@contextmanager
def _limited(pattern: str, key: str) -> Iterator[None]:
    """Stops what takes too long by an alarm, which only the main thread can set, and only where nobody else waits for
    one.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise InputError(f"{key}: the pattern {show(pattern)} takes over {LONGEST:g} s to match; write a simpler one")

    alarms = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    guarded = alarms and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    before = signal.signal(signal.SIGALRM, stop) if guarded else None
    begun = time.monotonic()
    try:
        if guarded:
            signal.setitimer(signal.ITIMER_REAL, max(LONGEST - _spent.get(pattern, 0.0), SLOW))
        yield
    except re.error as error:
        raise InputError(f"{key}: {show(pattern)} is not a regular expression: {error}") from None
    except RecursionError:
        raise InputError(f"{key}: the pattern {show(pattern)} is nested too deep") from None
    finally:
        if guarded:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        took = time.monotonic() - begun
        if took > SLOW:
            _spent[pattern] = _spent.get(pattern, 0.0) + took
