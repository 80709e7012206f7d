"""Timeline → counters in Chrome's trace format, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from memsim.files import beside
from memsim.timeline.curves import Curves

COUNTERS = ("requested", "allocated", "active", "reserved")


def write_counters(timeline: Curves, path: str | Path) -> None:
    """Writes the counters in bytes, with an entry for each event that changes one. An event of the tape is a
    microsecond; phases are slices.

    Raises InputError where the path cannot be written; then there is no file.
    """
    answer = timeline.answer
    n = answer.processed
    columns = np.stack([getattr(answer, name)[:n] for name in COUNTERS], axis=1)
    changed = np.ones(n, bool)
    changed[1:] = (columns[1:] != columns[:-1]).any(axis=1)
    at = np.flatnonzero(changed)
    events: list[dict[str, object]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": timeline.about.name or "memsim"}}
    ]
    for span in timeline.spans:
        if span.start < n:
            events.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": 0,
                    "name": span.phase,
                    "ts": span.start,
                    "dur": min(span.stop, n) - span.start,
                }
            )
    for event, row in zip(at.tolist(), columns[at].tolist(), strict=True):
        events.append(
            {
                "ph": "C",
                "pid": 0,
                "name": "GPU memory (bytes)",
                "ts": event,
                "args": dict(zip(COUNTERS, row, strict=True)),
            }
        )
    with beside(Path(path)) as file:
        file.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
