"""Forgets compiled code whose sources have changed.

Numba keeps what it compiled as long as a function's own file is unchanged; it does not look at the files of the
functions that were compiled into it.
"""

from __future__ import annotations

from pathlib import Path


def forget_stale(compiled: Path, sources: Path) -> None:
    """Deletes numba's indexes in a folder that are older than the newest of the sources' files; what is read-only
    stays.
    """
    newest = max(source.stat().st_mtime_ns for source in sources.glob("*.py"))
    for index in compiled.glob("*.nbi"):
        try:
            if index.stat().st_mtime_ns < newest:
                index.unlink()
        except OSError:  # another process was first, or may not be written
            continue
