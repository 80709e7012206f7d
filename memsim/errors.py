"""The one exception that a user's mistake raises."""

import difflib
from collections.abc import Iterable

SHOWN = 60  # characters of a value, or of a key, in an error


class InputError(ValueError):
    """Input that cannot be used: one line naming the file, the key and what would be valid.

    The command line prints the line on stderr and exits with code 2.
    """


class Unreachable(Exception):
    """A question of which the answer is no: one line that says what could be had instead. The command line exits with
    code 1.
    """


class Unsupported(InputError):
    """Valid input that memsim cannot simulate yet."""


def nearest(word: str, known: Iterable[str]) -> str:
    """What to append to an error: "; did you mean X?", or nothing where nothing known is near."""
    by_lower = {name.lower(): name for name in known}
    word = word.lower().rsplit("/", 1)[-1]
    found = [name for name in by_lower if word and name.startswith(word)][:3] or difflib.get_close_matches(
        word, by_lower, 1, cutoff=0.6
    )
    return f"; did you mean {' or '.join(by_lower[name] for name in found)}?" if found else ""


def show(value: object) -> str:
    """A value as an error shows it, not too long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
