"""Several Runs side by side: which fit, what each costs in memory and in time, and which of them nobody
would choose.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memsim.errors import visible
from memsim.timeline.curves import Curves
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT
from memsim.units import capacity, duration, gib, percent

if TYPE_CHECKING:
    import pandas


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula may begin with
WORTHWHILE = 0.99  # of the time: what saves less is not worth a sentence


@dataclass(frozen=True, eq=False)
class Case:
    """One Run of a comparison."""

    label: str
    timeline: Curves

    @property
    def fits(self) -> bool:
        """Whether the device completes its steps."""
        return not self.timeline.out_of_memory

    @property
    def known(self) -> bool:
        """Whether its peak is known: of a recording that ran out of memory it is not."""
        return self.fits or self.timeline.unlimited is not None

    @property
    def memory(self) -> int:
        """The peak of reserved, in bytes."""
        return self.timeline.peak_reserved

    @property
    def seconds(self) -> float | None:
        """Of a step, by estimate."""
        return None if self.timeline.step_time is None else self.timeline.step_time.total

    @property
    def pace(self) -> float:
        """Seconds a token, by estimate; of runs whose steps see different numbers of tokens, only this compares. 0
        where nothing is known of time.
        """
        return (self.seconds or 0.0) / max(self.timeline.about.tokens, 1)

    @property
    def speed(self) -> str:
        """In words: "2.89 s a step, 2,839 tokens/s"; empty where nothing is known of time."""
        time = self.timeline.step_time
        return "" if time is None else f"{duration(time.total)} a step, {time.tokens_per_second:,.0f} tokens/s"

    @cached_property
    def breakdown(self) -> dict[str, int]:
        """Bytes at the peak of allocated by category, with what blocks hold beyond what was asked of them."""
        peak = self.timeline.at_peak(largest=0)
        return {CATEGORY_NAMES[kind]: count for kind, count in peak.by_category.items() if count} | (
            {UNSPLIT: peak.unsplit} if peak.unsplit else {}
        )

    def to_json(self) -> dict[str, Any]:
        """The label, the run, and the numbers of the table: bytes and seconds."""
        timeline, time = self.timeline, self.timeline.step_time
        return {
            "label": self.label,
            "run": None if timeline.about.run is None else dict(timeline.about.run),
            "fits": self.fits,
            "device_memory": timeline.about.device_memory,
            "peak_reserved": timeline.peak_reserved,
            "peak_allocated": timeline.peak_allocated,
            "peak_requested": timeline.peak_requested,
            "at_peak": self.breakdown,
            "time": None if time is None else time.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Cases:
    """Runs side by side, in the order in which they were given; memsim.Comparison can also draw them."""

    cases: tuple[Case, ...]
    title: str = ""
    command: str = ""  # what repeats it

    @cached_property
    def front(self) -> tuple[Case, ...]:
        """The Pareto front of memory and time, least memory first: of these, what takes less of one takes more of the
        other.
        """
        ranked = sorted((case for case in self.cases if case.known), key=lambda case: (case.memory, case.pace))
        best, kept = float("inf"), []
        for case in ranked:
            if case.pace < best:
                best = case.pace
                kept.append(case)
        return tuple(kept)

    @cached_property
    def cheapest(self) -> Case | None:
        """Of those that fit, the one that takes the least time a token, and of equals the one with the least memory;
        None where nothing fits.
        """
        return min((case for case in self.cases if case.fits), key=lambda case: (case.pace, case.memory), default=None)

    @cached_property
    def smallest(self) -> Case | None:
        """The one with the least memory, and of equals the quickest."""
        return min((case for case in self.cases if case.known), key=lambda case: (case.memory, case.pace), default=None)

    @cached_property
    def same_tokens(self) -> bool:
        """Whether a step of each sees as many tokens, so that steps compare."""
        return len({case.timeline.about.tokens for case in self.cases}) == 1

    def verdict(self) -> tuple[str, ...]:
        """What follows, in sentences."""
        best, least = self.cheapest, self.smallest
        if best is None:
            return (f"None of the {len(self.cases)} fits.", *self._least(least))
        about = best.timeline.about
        where = about.device or (f"{capacity(about.device_memory)} of device memory" if about.device_memory else "")
        lines = [
            f"{_quoted(best.label)} is the fastest that fits{f' {where}' if where else ''}: "
            f"{gib(best.memory)}{f', about {best.speed}' if best.speed else ''}."
        ]
        quicker = [case for case in self.cases if not case.fits and case.known and case.pace < WORTHWHILE * best.pace]
        if quicker:
            fastest = min(quicker, key=lambda case: case.pace)
            room = fastest.timeline.about.device_memory or 0
            gain = f"{percent(best.pace / fastest.pace - 1)} faster"
            lines.append(
                f"{_quoted(fastest.label)} would be {gain}, but needs {gib(fastest.memory)}: "
                f"{gib(fastest.memory - room)} too much."
            )
        if least is not None and least.memory < best.memory:
            line = f"{_quoted(least.label)} needs least, {gib(least.memory)}: {gib(best.memory - least.memory)} less"
            line += (
                (f", and {percent(least.pace / best.pace - 1)} more time")
                if best.pace and least.pace > best.pace
                else ""
            )
            lines.append(f"{line}{'' if self.same_tokens else ' a token'}.")
        return tuple(lines)

    def _least(self, least: Case | None) -> tuple[str, ...]:
        if least is None:
            return ()
        room = least.timeline.about.device_memory
        more = f", {gib(least.memory - room)} too much" if room and least.memory > room else ""
        return (f"{_quoted(least.label)} needs least: {gib(least.memory)}{more}.",)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "cases": [case.to_json() | {"pareto": case in self.front} for case in self.cases],
            "cheapest": None if self.cheapest is None else self.cheapest.label,
            "pareto": [case.label for case in self.front],
        }

    def rows(self) -> list[dict[str, object]]:
        """A row a case: bytes, seconds and ratios."""
        found = []
        for case in self.cases:
            time = case.timeline.step_time
            row: dict[str, object] = {
                "run": case.label,
                "fits": case.fits,
                "peak_reserved": case.timeline.peak_reserved,
                "peak_allocated": case.timeline.peak_allocated,
                "peak_requested": case.timeline.peak_requested,
                "pareto": case in self.front,
            }
            row |= (
                {}
                if time is None
                else {f"time_{key}" if key == "step" else key: value for key, value in time.to_json().items()}
            )
            found.append(row)
        return found

    def to_csv(self) -> str:
        """The rows as CSV with a header."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(
            text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
        return text.getvalue()

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame. Raises ImportError where pandas is not installed."""
        import pandas

        return pandas.DataFrame(self.rows()).set_index("run")


def _as_text(value: object) -> object:
    """Words as a CSV cell: a spreadsheet would take some for a formula, and a terminal obey what is in others."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(FORMULA) else visible(value)


def _quoted(label: str) -> str:
    return f"“{label}”"
