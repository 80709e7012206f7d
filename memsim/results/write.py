"""Writes a Timeline as the suffix of a file says."""

from __future__ import annotations

from pathlib import Path

from memsim.results.answers import Timeline

SUFFIXES = (".html", ".pickle", ".json")


def write(timeline: Timeline, path: Path, suffix: str) -> None:
    """Writes the Timeline as the suffix says: a snapshot, counters, or in any other case the report."""
    if suffix == ".pickle":
        from memsim.traces.write_snapshot import write_snapshot

        write_snapshot(timeline, path)
    elif suffix == ".json":
        from memsim.traces.write_counters import write_counters

        write_counters(timeline, path)
    else:
        timeline.write_html(path)
