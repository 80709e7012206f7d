"""The Comparison: Timelines side by side that can draw themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.timeline.comparison import Case, Cases
from memsim.timeline.curves import Curves


class Comparison(Cases):
    """Runs side by side: which of them fit, and what each costs in memory and in time. As sentences, as data, as a
    page.
    """

    def write_html(self, path: str | Path) -> None:
        """Writes the page, one file that works offline. Raises InputError where the path cannot be written."""
        from memsim.report.compare_page import compare_html
        from memsim.report.page import write

        write(compare_html(self), Path(path))

    def _repr_html_(self) -> str:
        from memsim.report.compare_page import compare_html
        from memsim.report.page import framed

        return framed(compare_html(self), "memsim comparison")


def side_by_side(
    timelines: Sequence[Curves], labels: Sequence[str] | None = None, title: str = "", command: str = ""
) -> Comparison:
    """Puts Timelines side by side. Labels are the runs' names where none are given."""
    names = (
        list(labels)
        if labels is not None
        else [timeline.about.name or f"run {at + 1}" for at, timeline in enumerate(timelines)]
    )
    cases = tuple(Case(label, timeline) for label, timeline in zip(names, timelines, strict=True))
    found = Comparison(cases, title, command)
    labels = _distinct([_told(case, of, names) for case, of in zip(cases, found.differences, strict=True)])
    return Comparison(
        tuple(Case(label, timeline) for label, timeline in zip(labels, timelines, strict=True)), title, command
    )


def _told(case: Case, differences: tuple[tuple[str, str], ...], names: Sequence[str]) -> str:
    """The label; where another has the same, with what differs: "tiny · batch 4 × 2048 tokens"."""
    if names.count(case.label) == 1:
        return case.label
    return " · ".join([case.label, *(f"{key} {value}" for key, value in differences)])


def _distinct(names: Sequence[str]) -> list[str]:
    """Returns the names, with a number where one occurs again."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
