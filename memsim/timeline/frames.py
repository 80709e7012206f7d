"""pandas, for those who ask for a frame: memsim does not install it."""

from __future__ import annotations

from types import ModuleType


def needed_pandas() -> ModuleType:
    """pandas. Raises ImportError, which says what to install, where it is not there."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_frame() needs pandas, which memsim does not install: pip install pandas") from None
    found: ModuleType = pandas
    return found
