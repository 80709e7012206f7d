"""The comparison page: memory against time, one step of every run overlaid, what is alive at each peak, and a table
that sorts.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.report.figures import STACK, axes, config, slug
from memsim.report.pack import pack
from memsim.report.page import ASSETS, plotly, render
from memsim.report.parts import commanded
from memsim.timeline.comparison import Case, Cases
from memsim.timeline.curves import Curves
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT, phase_words
from memsim.units import capacity, duration, percent, size
from memsim.version import version

MOST_DRAWN = 8  # timelines that are drawn at once, until someone asks for more


def compare_html(found: Cases) -> str:
    """The page. Raises InputError where there is nothing to show."""
    empty = next((case for case in found.cases if not case.timeline.whole.processed), None)
    if empty is not None or not found.cases:
        raise InputError(f"{empty.label if empty else 'the comparison'}: has no event, so there is nothing to compare")
    answer, *rest = found.verdict()
    return render(
        kind="comparison",
        title=f"memsim compare {found.title}".strip(),
        main=_main(found, answer, rest),
        footer=f"memsim {escape(version())}. One file, complete in itself: it makes no network request.",
        script=("data.js", "page.js", "compare.js"),
        start="comparison()",
        data={"data": pack(_columns(found)), "plotly": plotly()},
        meta=_meta(found),
    )


def _main(found: Cases, answer: str, rest: list[str]) -> str:
    template = (ASSETS / "compare.html").read_text(encoding="utf-8")
    fields = {
        "$style": (ASSETS / "compare.css").read_text(encoding="utf-8"),
        "$answer": escape(answer),
        "$leads": "".join(f'<p class="lead">{escape(line)}</p>' for line in rest),
        "$facts": "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in shared_facts(found)
        ),
        "$table": _table(found),
        "$timed": "" if timed(found) else " hidden",
        "$runs_sub": STEPS_SUB if timed(found) else "",
        "$overlay_title": "One step, overlaid" if stepped(found) else "Overlaid",
        "$overlay_sub": f"Memory over {'the last step of each run' if stepped(found) else 'each recording'}, from its "
        "first event. Drag over a part to zoom.",
        "$repeat": commanded(found.command, "compare-command") if found.command else "",
    }
    for name, value in fields.items():
        template = template.replace(name, value)
    return template


def timed(found: Cases) -> bool:
    """Whether anything is known of time."""
    return any(case.seconds for case in found.cases)


def stepped(found: Cases) -> bool:
    """Whether there are training steps, which a recording does not name."""
    return any(span.step is not None for case in found.cases for span in case.timeline.spans)


def shared_facts(found: Cases) -> list[tuple[str, str]]:
    """What is the same in every run."""
    facts = [dict(case.timeline.about.facts) for case in found.cases]
    same = [(key, value) for key, value in facts[0].items() if all(other.get(key) == value for other in facts)]
    places = {_room(case.timeline) for case in found.cases}
    return [*same, ("device", places.pop())] if len(places) == 1 else same


def _room(timeline: Curves) -> str:
    about = timeline.about
    if not about.device:
        return capacity(about.device_memory) if about.device_memory else "unlimited"
    return f"{about.device}: {about.counted}" if about.counted else about.device


STEPS_SUB = (
    "A step is the last one simulated; its time is an estimate from the device's data sheet. Recomputation is what "
    "checkpointing adds to it. On the front is what no other run beats in both memory and time, of those that can be "
    "compared: one model on one device."
)
TIMED = 4  # columns before those of time
HEADINGS = (
    ("run", "run", ""),
    ("fits", "fits", ""),
    ("peak_reserved", "peak reserved", "number"),
    ("peak_allocated", "peak allocated", "number wide"),
    ("step", "a step", "number"),
    ("tokens", "tokens/s", "number wide"),
    ("mfu", "MFU", "number wide"),
    ("recomputation", "recomputation", "number wide"),
    ("front", "front", "wide"),
)


def _table(found: Cases) -> str:
    head = "".join(
        f'<th scope="col" class="{look}" aria-sort="none"><button type="button" class="sort" data-sort="{at}">{words}'
        "</button></th>"
        for at, (_, words, look) in enumerate(HEADINGS if timed(found) else HEADINGS[:TIMED])
    )
    rows = "".join(_row(at, case, found) for at, case in enumerate(found.cases))
    return (
        f'<table id="runs"><caption class="hidden-label">Every run</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _row(at: int, case: Case, found: Cases) -> str:
    time, timeline = case.timeline.step_time, case.timeline
    room = timeline.about.device_memory
    fits = (
        ("tight" if case.timeline.verdict == "tight" else "yes" if room else "–")  # without a limit anything does
        if case.fits
        else f"no: lacks {size(case.memory - room)}"
        if case.known and room and case.memory > room
        else "no"
    )
    best = "fastest that fits" if case.pace else "least that fits" if room else "least"
    name = escape(case.label) + (f'<span class="mark">{best}</span>' if case is found.cheapest else "")
    told = ", ".join(f"{key} {value}" for key, value in found.differences[at])
    name += "".join(f'<span class="why">{escape(words)}</span>' for words in (told, timeline.about.note) if words)
    cells: list[tuple[str, float, str]] = [(fits, float(not case.fits), "")]
    for count, look in ((timeline.peak_reserved, "number"), (timeline.peak_allocated, "number wide")):
        cells.append((size(count) if case.known else "–", count if case.known else 0, look))
    if not timed(found):
        pass
    elif time is None:
        cells += [("–", 0.0, "number")] + [("–", 0.0, "number wide")] * 3
    else:
        cells.append((duration(time.total), time.total, "number"))
        cells.append((f"{time.tokens_per_second:,.0f}", time.tokens_per_second, "number wide"))
        cells.append((percent(time.mfu), time.mfu, "number wide"))
        cells.append((f"+{percent(time.overhead)}" if time.recomputation else "–", time.overhead, "number wide"))
    if timed(found):
        cells.append(("yes" if case in found.front else "–", float(case not in found.front), "wide"))
    body = "".join(f'<td class="{look}" data-value="{value!r}">{words}</td>' for words, value, look in cells)
    look = "" if case.fits else ' class="unfit"'
    return (
        f'<tr data-case="{at}"{look}><th scope="row" data-value="{at}"><span class="key" data-key="{at}"></span>{name}'
        f"</th>{body}</tr>"
    )


def _columns(found: Cases) -> dict[str, NDArray[Any]]:
    """One step of every run: what changes at each event of allocated and of reserved in bytes, and the seconds before
    it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for at, case in enumerate(found.cases):
        lo, hi = step_of(case.timeline)
        for name, curve in (("allocated", case.timeline.whole.allocated), ("reserved", case.timeline.whole.reserved)):
            arrays[f"{name}{at}"] = np.diff(curve[lo:hi], prepend=0).astype(np.float64)
        if case.timeline.tape.work is not None:
            arrays[f"seconds{at}"] = case.timeline.tape.work[lo:hi, 0].astype(np.float32)
    return arrays


def step_of(timeline: Curves) -> tuple[int, int]:
    """The events of the last step; where there is none all that were recorded."""
    numbers = [span.step for span in timeline.spans if span.step is not None]
    mine = [span for span in timeline.spans if numbers and span.step == numbers[-1]]
    return (mine[0].start, mine[-1].stop) if mine else (timeline.about.first_event, timeline.whole.processed)


def _meta(found: Cases) -> dict[str, Any]:
    rooms = {case.timeline.about.device_memory for case in found.cases}
    room = rooms.pop() if len(rooms) == 1 else None
    first = found.cases[0].timeline
    kinds = [*(CATEGORY_NAMES[kind] for kind in STACK), UNSPLIT]
    present = [name for name in kinds if any(name in case.breakdown for case in found.cases)]
    drawn = list(found.cases) if len(found.cases) <= MOST_DRAWN else [*found.front[:MOST_DRAWN]]
    if found.cheapest is not None and found.cheapest not in drawn:
        drawn.append(found.cheapest)
    return {
        "cases": [
            {
                "label": case.label,
                "fits": case.fits,
                "known": case.known,
                "reserved": case.timeline.peak_reserved,
                "allocated": case.timeline.peak_allocated,
                "seconds": case.seconds,
                "pace": case.seconds if found.same_tokens or case.seconds is None else 1e3 * case.pace,
                "speed": case.speed,
                "front": case in found.front,
                "group": next(number for number, group in enumerate(found.groups) if case in group),
                "best": case is found.cheapest,
                "shown": case in drawn,
                "parts": {slug(name): count for name, count in case.breakdown.items()},
                "phases": _phases(case.timeline),
            }
            for case in found.cases
        ],
        "kinds": [{"key": slug(name), "name": name} for name in present],
        "capacity": room,
        "stepped": stepped(found),
        # replays of one recording are allocated alike; what they reserve is what tells them apart
        "curve": "allocated" if stepped(found) or len(found.groups) > 1 else "reserved",
        "paceTitle": "time of a step, s" if found.same_tokens else "time for 1,000 tokens, s",
        "capacityWords": " ".join(
            filter(None, (first.about.device, capacity(room), "usable" if first.about.counted else ""))
        )
        if room
        else "",
        "axes": {theme: axes(theme) for theme in ("light", "dark")},
        "config": config(),
    }


def _phases(timeline: Curves) -> list[dict[str, Any]]:
    lo, hi = step_of(timeline)
    return [
        {"name": phase_words(span.kind), "start": span.start - lo, "stop": span.stop - lo}
        for span in timeline.spans
        if lo <= span.start < hi
    ]
