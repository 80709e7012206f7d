"""The Timeline: curves of memory that can print, draw and write themselves."""

from __future__ import annotations

from pathlib import Path

from memsim.report.headline import headline
from memsim.timeline.curves import Curves
from memsim.units import gib


class Timeline(Curves):
    """What a training job does to GPU memory, event by event: curves, peaks, storages alive at an event, the report."""

    @classmethod
    def of(cls, curves: Curves) -> Timeline:
        """Returns the Timeline of these curves."""
        return cls(curves.tape, curves.answer, curves.about, curves.unlimited)

    def __repr__(self) -> str:
        """One line: what it is of, its peaks, whether memory runs out."""
        peaks = f"{gib(self.peak_reserved)} peak reserved, {gib(self.peak_allocated)} peak allocated"
        name, ran_out = self.about.name or "unnamed", ", out of memory" if self.out_of_memory else ""
        return f"<Timeline {name}: {peaks}{ran_out}, {len(self.tape):,} events>"

    def headline(self) -> str:
        """Returns the answer in one or two sentences."""
        return headline(self)

    def write_html(self, path: str | Path) -> None:
        """Writes the report, one file that works offline. Raises InputError where the path cannot be written."""
        from memsim.report.page import write_html  # only a caller who wants the page pays for its assets

        write_html(self, Path(path))

    def _repr_html_(self) -> str:
        from memsim.report.page import notebook_html

        return notebook_html(self)
