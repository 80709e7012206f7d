"""The one exception that a user's mistake raises."""


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
