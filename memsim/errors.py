"""The one exception that a user's mistake raises."""

import difflib
import reprlib
from collections.abc import Iterable

SHOWN = 60  # characters of a value, or of a key, in an error
# Looks at a few items on a few levels: a whole repr of what is nested, or shared, may not end.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 6, 20, 20, 20
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2 * SHOWN, 2 * SHOWN, 2 * SHOWN


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
    """A value as an error shows it, not too long, however large or deep the value is."""
    try:
        text = repr(value) if isinstance(value, (str, bytes)) and len(value) <= SHOWN else _SHORT.repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python writes
        text = "a number of thousands of digits" if isinstance(value, int) else f"{type(value).__name__}, nested deep"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def brief(text: str, most: int = 160) -> str:
    """Foreign words on one line, not too many, with nothing in them that a terminal would obey."""
    line = visible(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[:most]}…"


def visible(text: str) -> str:
    """The text with escapes in place of what does not show: control characters, which a terminal obeys, and marks that
    turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)
