"""The version of memsim that is installed."""

from __future__ import annotations


def version() -> str:
    """The version of memsim that is installed."""
    # costs milliseconds, and most callers never ask
    from importlib.metadata import PackageNotFoundError, version as installed

    try:
        return installed("memsim")
    except PackageNotFoundError:
        return "unknown (not installed)"
