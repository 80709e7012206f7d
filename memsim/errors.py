"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Input that cannot be used: one line naming the file, the key and what would be valid.

    The command line prints the line on stderr and exits with code 2.
    """


class Unsupported(InputError):
    """Valid input that memsim cannot simulate yet."""
