"""memsim: what one training step will do to GPU memory, event by event, before the job is launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.run.job import Run as Run
    from memsim.simulation.pipeline import simulate as simulate
    from memsim.timeline.comparison import Comparison as Comparison, compare as compare
    from memsim.timeline.curves import Timeline as Timeline
    from memsim.traces.load import load_trace as load_trace
    from memsim.traces.replay import replay as replay

_HOMES = {
    "Comparison": "memsim.comparison",
    "Run": "memsim.run",
    "Timeline": "memsim.timeline",
    "compare": "memsim.comparison",
    "load_trace": "memsim.traces.load",
    "replay": "memsim.replayed",
    "simulate": "memsim.simulation",
}
__all__ = ["Comparison", "Run", "Timeline", "compare", "load_trace", "replay", "simulate"]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for, so that `import memsim` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'memsim' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
