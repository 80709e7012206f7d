"""Several Runs side by side: those that fit, their costs in memory and in time, and those that are worse than another
in both.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memsim.errors import visible
from memsim.timeline.curves import Curves
from memsim.timeline.frames import needed_pandas
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT
from memsim.units import capacity, duration, percent, size

if TYPE_CHECKING:
    import pandas


MOST_NAMED = 6  # cases with a sentence of their own
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula may begin with
WORTHWHILE = 0.99  # of the time: what saves less is not worth a sentence


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
    def alike(self) -> tuple[str, ...]:
        """What must be equal for two of them to be compared: the model or the recording, and the device."""
        about = self.timeline.about
        facts = dict(about.facts)
        what = [facts.get(key, "") for key in ("model", "trace", "recorded on")]
        return *what, repr((about.run or {}).get("model")), about.device, str(about.device_memory)

    @property
    def room(self) -> str:
        """The device in words: "A100-80GB", "24 GiB"; empty where memory has no limit."""
        about = self.timeline.about
        return about.device or (capacity(about.device_memory) if about.device_memory else "")

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
            "note": timeline.about.note,
            "time": None if time is None else time.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Cases:
    """Runs side by side, in the order in which they were given; memsim.Comparison can also draw them."""

    cases: tuple[Case, ...]
    title: str = ""
    command: str = ""  # command line that repeats it

    @cached_property
    def groups(self) -> tuple[tuple[Case, ...], ...]:
        """The cases by what can be compared: in each one model, or one recording, on one device."""
        found: dict[tuple[str, ...], list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.alike, []).append(case)
        return tuple(map(tuple, found.values()))

    @cached_property
    def differences(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Of each case the facts in which the cases differ, such as ("model", "mistral-7b"); without those that every
        label names already.
        """
        facts = [
            dict(case.timeline.about.facts)
            | {"device" if case.timeline.about.device else "device memory": case.room or "not known"}
            for case in self.cases
        ]
        keys = [
            key
            for key in dict.fromkeys(key for of in facts for key in of)
            if len({of.get(key, "") for of in facts}) > 1
            and not all(of.get(key, "") in case.label for of, case in zip(facts, self.cases, strict=True))
        ]
        return tuple(tuple((key, of[key]) for key in keys if of.get(key)) for of in facts)

    @cached_property
    def front(self) -> tuple[Case, ...]:
        """The Pareto front of memory and time, least memory first: of these, what takes less of one takes more of the
        other. Of cases that cannot be compared each group has its own.
        """
        return tuple(case for group in self.groups for case in _front(group))

    @cached_property
    def cheapest(self) -> Case | None:
        """Of those that fit, the one that takes the least time a token, and of equals the one with the least memory;
        None where nothing fits, and where the cases cannot be compared.
        """
        fitting = [case for case in self.cases if case.fits and len(self.groups) == 1]
        return min(fitting, key=lambda case: (case.pace, case.memory), default=None)

    @cached_property
    def smallest(self) -> Case | None:
        """The case with the least memory, and of equals the quickest. None where no peak is known."""
        return min((case for case in self.cases if case.known), key=lambda case: (case.memory, case.pace), default=None)

    @cached_property
    def same_tokens(self) -> bool:
        """True if a step of each sees the same number of tokens, so that steps compare."""
        return len({case.timeline.about.tokens for case in self.cases}) == 1

    def verdict(self) -> tuple[str, ...]:
        """What follows, in sentences, which speak only of what can be compared."""
        best, least = self.cheapest, self.smallest
        if len(self.groups) > 1:
            return self._apart()
        if best is None:
            return (f"None of the {len(self.cases)} fits.", *self._least(least))
        if not best.pace:
            return self._by_memory(best)
        about = best.timeline.about
        where = best.room if about.device or not best.room else f"{best.room} of device memory"
        where += f" ({about.counted})" if about.counted else ""
        tight = f" (tight: {size(best.timeline.spare or 0)} to spare)" if best.timeline.verdict == "tight" else ""
        lines = [
            f"{_quoted(best.label)} is the fastest that fits{f' {where}' if where else ''}: "
            f"{size(best.memory)}{tight}{f', about {best.speed}' if best.speed else ''}."
        ]
        quicker = [case for case in self.cases if not case.fits and case.known and case.pace < WORTHWHILE * best.pace]
        if quicker:
            fastest = min(quicker, key=lambda case: case.pace)
            room = fastest.timeline.about.device_memory or 0
            gain = f"{percent(best.pace / fastest.pace - 1)} faster"
            lines.append(
                f"{_quoted(fastest.label)} would be {gain}, but needs {size(fastest.memory)}: "
                f"{size(fastest.memory - room)} too much."
            )
        if least is not None and least.memory < best.memory:
            line = f"{_quoted(least.label)} needs least, {size(least.memory)}: {size(best.memory - least.memory)} less"
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
        more = f", {size(least.memory - room)} too much" if room and least.memory > room else ""
        return (f"{_quoted(least.label)} needs least: {size(least.memory)}{more}.",)

    def _by_memory(self, least: Case) -> tuple[str, ...]:
        """The sentences where nothing is known of time: of replays."""
        known = [case for case in self.cases if case.known]
        most = max(known, key=lambda case: case.memory)
        failed = [case for case in self.cases if not case.fits]
        if most.memory == least.memory and not failed:
            every = "Both" if len(self.cases) == 2 else f"All {len(self.cases)}"
            return (f"{every} need {size(least.memory)}: the settings make no difference.",)
        more = "" if most is least else f", {size(most.memory - least.memory)} less than {_quoted(most.label)}"
        those = " of those that fit" if failed else ""
        lines = [f"{_quoted(least.label)} needs least{those}: {size(least.memory)}{more}."]
        lines += [_alone(case) for case in failed[:MOST_NAMED]]
        return tuple(lines)

    def _apart(self) -> tuple[str, ...]:
        """The sentences where models, recordings or devices differ: of each by itself."""
        count, fit = len(self.cases), sum(case.fits for case in self.cases)
        every = "Both fit" if count == 2 else f"All {count} fit"
        some = f"{fit} of {count} fit" if fit else f"None of the {count} fits"
        first = f"{every if fit == count else some}. "
        if not all(case.room for case in self.cases):  # to fit says nothing where nobody knows how much there was
            verb = "runs" if count - fit == 1 else "run"
            first = "" if fit == count else f"{count - fit} of {count} {verb} out of memory. "
        parts = [
            word
            for word, differs in (
                ("models", len({case.alike[0] + case.alike[3] for case in self.cases}) > 1),
                ("recordings", len({case.alike[1] for case in self.cases}) > 1),
                ("devices", len({case.alike[2:3] + case.alike[4:] for case in self.cases}) > 1),
            )
            if differs
        ]
        lines = [f"{first}Different {' and '.join(parts)} are not ranked against each other."]
        for group in self.groups[:MOST_NAMED]:
            lines.append(_alone(group[0]) if len(group) == 1 else _of_group(group))
        more = len(self.groups) - MOST_NAMED
        return (*lines, *(("The table has the others.",) if more > 0 else ()))

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
        writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
        return text.getvalue()

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame. Raises ImportError where pandas is not installed."""
        return needed_pandas().DataFrame(self.rows()).set_index("run")


def _front(cases: tuple[Case, ...]) -> list[Case]:
    """Of cases that can be compared those that none beats in both memory and time, least memory first."""
    best, kept = float("inf"), []
    for case in sorted((case for case in cases if case.known), key=lambda case: (case.memory, case.pace)):
        if case.pace < best:
            best = case.pace
            kept.append(case)
    return kept


def _alone(case: Case) -> str:
    """A sentence about one case, compared with nothing but its device."""
    room, memory = case.room, case.timeline.about.device_memory
    if not case.known:
        return f"{_quoted(case.label)} runs out of memory{f' on {room}' if room else ''}."
    speed = f"; about {case.speed}" if case.speed else ""
    if not case.fits:
        more = f", {size(case.memory - memory)} too much" if memory and case.memory > memory else ""
        where = room if case.timeline.about.device else f"{room} of device memory" if room else "the device"
        return f"{_quoted(case.label)} does not fit {where}: it needs {size(case.memory)}{more}."
    if not memory:
        return f"{_quoted(case.label)} needs {size(case.memory)}{speed}."
    return f"{_quoted(case.label)} fits {room}: it needs {size(case.memory)}{speed}."


def _of_group(group: tuple[Case, ...]) -> str:
    """The first sentence about cases that can be compared, under the name of what they share."""
    facts, room = dict(group[0].timeline.about.facts), group[0].room
    shared = next((facts[key] for key in ("model", "recorded on", "trace") if facts.get(key)), "")
    of = " on ".join(filter(None, (shared, room)))
    return f"Of {of}: {Cases(group).verdict()[0]}" if of else Cases(group).verdict()[0]


def _as_text(value: object) -> object:
    """Words as a CSV cell: a spreadsheet would take some for a formula, and a terminal obey what is in others."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(FORMULA) else visible(value)


def _quoted(label: str) -> str:
    return f"“{label}”"
