"""Several Runs side by side: those that fit, their costs in memory and in time, and those that are worse than another
in both.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memsim.timeline.curves import Curves
from memsim.timeline.frames import needed_pandas
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT
from memsim.units import capacity, duration, gib, percent

if TYPE_CHECKING:
    import pandas


WORTHWHILE = 0.99  # share of the time: a smaller saving is not worth a sentence


@dataclass(frozen=True, eq=False)
class Case:
    """One Run of a comparison."""

    label: str
    timeline: Curves

    @property
    def fits(self) -> bool:
        """True if the device completes its steps."""
        return not self.timeline.out_of_memory

    @property
    def known(self) -> bool:
        """True if its peak is known, which it is not for a recording that ran out of memory."""
        return self.fits or self.timeline.unlimited is not None

    @property
    def memory(self) -> int:
        """Peak of reserved memory, in bytes."""
        return self.timeline.peak_reserved

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of a step; None where nothing is known of time."""
        return None if self.timeline.step_time is None else self.timeline.step_time.total

    @property
    def pace(self) -> float:
        """Estimated seconds for each token, which alone compares runs whose steps see different numbers of tokens. 0
        where nothing is known of time.
        """
        return (self.seconds or 0.0) / max(self.timeline.about.tokens, 1)

    @property
    def speed(self) -> str:
        """The speed in words: "2.89 s a step, 2,839 tokens/s". Empty where nothing is known of time."""
        time = self.timeline.step_time
        return "" if time is None else f"{duration(time.total)} a step, {time.tokens_per_second:,.0f} tokens/s"

    @cached_property
    def breakdown(self) -> dict[str, int]:
        """Bytes at the peak of allocated by category, with the bytes that blocks hold beyond those requested."""
        peak = self.timeline.at_peak(largest=0)
        return {CATEGORY_NAMES[kind]: count for kind, count in peak.by_category.items() if count} | (
            {UNSPLIT: peak.unsplit} if peak.unsplit else {}
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the label, the run, and the numbers of the table, in bytes and seconds."""
        timeline, time = self.timeline, self.timeline.step_time
        return {
            "label": self.label,
            "run": None if timeline.about.run is None else dict(timeline.about.run),
            "fits": self.fits,
            "verdict": timeline.verdict,
            "device_memory": timeline.about.device_memory,
            "device_memory_counted": timeline.about.counted or None,
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
    command: str = ""  # command line that repeats it

    @cached_property
    def front(self) -> tuple[Case, ...]:
        """The Pareto front of memory and time, least memory first. In it, a case that takes less of one takes more of
        the other.
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
        """The case, of those that fit, with the least time for each token, and of equals the one with the least memory.
        None where nothing fits.
        """
        return min((case for case in self.cases if case.fits), key=lambda case: (case.pace, case.memory), default=None)

    @cached_property
    def smallest(self) -> Case | None:
        """The case with the least memory, and of equals the quickest. None where no peak is known."""
        return min((case for case in self.cases if case.known), key=lambda case: (case.memory, case.pace), default=None)

    @cached_property
    def same_tokens(self) -> bool:
        """True if a step of each sees the same number of tokens, so that steps compare."""
        return len({case.timeline.about.tokens for case in self.cases}) == 1

    def verdict(self) -> tuple[str, ...]:
        """Returns the conclusions, in sentences."""
        best, least = self.cheapest, self.smallest
        if best is None:
            return (f"None of the {len(self.cases)} fits.", *self._least(least))
        about = best.timeline.about
        where = about.device or (f"{capacity(about.device_memory)} of device memory" if about.device_memory else "")
        where += f" ({about.counted})" if about.counted else ""
        tight = f" (tight: {gib(best.timeline.spare or 0)} to spare)" if best.timeline.verdict == "tight" else ""
        lines = [
            f"{_quoted(best.label)} is the fastest that fits{f' {where}' if where else ''}: "
            f"{gib(best.memory)}{tight}{f', about {best.speed}' if best.speed else ''}."
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
        """Returns everything as plain data."""
        return {
            "cases": [case.to_json() | {"pareto": case in self.front} for case in self.cases],
            "cheapest": None if self.cheapest is None else self.cheapest.label,
            "pareto": [case.label for case in self.front],
        }

    def rows(self) -> list[dict[str, object]]:
        """Returns a row for each case: bytes, seconds and ratios."""
        found = []
        for case in self.cases:
            time = case.timeline.step_time
            row: dict[str, object] = {
                "run": case.label,
                "fits": case.fits,
                "verdict": case.timeline.verdict,
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
        """Returns the rows as CSV with a header."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(
            text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame. Raises ImportError where pandas is not installed."""
        return needed_pandas().DataFrame(self.rows()).set_index("run")


def _quoted(label: str) -> str:
    return f"“{label}”"
