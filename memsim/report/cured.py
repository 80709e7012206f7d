"""The sentence about allocator settings that were tried where memory runs out."""

from __future__ import annotations

from memsim.timeline.about import Cure
from memsim.timeline.curves import Curves
from memsim.units import gib


def cured(timeline: Curves) -> str:
    """Which settings cure a run that is out of memory, as a sentence; empty where none was tried."""
    tried = timeline.about.cures
    if not tried:
        return ""
    fitting = [cure for cure in tried if cure.fits]
    if not fitting:
        return f"None of the allocator settings that were tried cures it ({', '.join(map(_name, tried))})."
    return f"What cures it: {'; '.join(map(_words, fitting))}."


def _words(cure: Cure) -> str:
    times = "once" if cure.retries == 1 else f"{cure.retries} times"
    return f"{_name(cure)}: {gib(cure.peak_reserved)}, fits" + (
        f", giving back its cache {times}" if cure.retries else ""
    )


def _name(cure: Cure) -> str:
    return cure.set or "PyTorch's default settings"
