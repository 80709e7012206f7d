"""memsim: what one training step will do to GPU memory, event by event, before the job is launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.api import compare as compare, replay as replay, simulate as simulate
    from memsim.results.answers import Timeline as Timeline
    from memsim.results.side_by_side import Comparison as Comparison
    from memsim.run.job import Run as Run
    from memsim.traces.load import load_trace as load_trace

_HOMES = {
    "Comparison": "memsim.results.side_by_side",
    "Run": "memsim.run.job",
    "Timeline": "memsim.results.answers",
    "compare": "memsim.api",
    "load_trace": "memsim.traces.load",
    "replay": "memsim.api",
    "simulate": "memsim.api",
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


def __dir__() -> list[str]:
    """The public names, whether or not they were asked for."""
    return sorted([*globals(), *__all__])
