"""What would change the peak: statements that follow from the Timeline alone, and nothing that it does not show."""

from __future__ import annotations

from memsim.tape import Category
from memsim.timeline.curves import Curves
from memsim.units import share, size

# These depend on the model, the method and the optimizer, not on how many tokens a step sees.
FIXED = (Category.WEIGHTS, Category.ADAPTERS, Category.GRADIENTS, Category.OPTIMIZER_STATE)


def hints(timeline: Curves) -> tuple[str, ...]:
    """Sentences, the most useful first."""
    found: tuple[str, ...]
    if timeline.out_of_memory and timeline.unlimited is None:
        found = (_in_pieces(timeline), _tokens(timeline))  # the peak is not known: only what the moment itself shows
    else:
        found = (_tokens(timeline), _in_pieces(timeline), _phases(timeline), _first_step(timeline), _retries(timeline))
    return tuple(hint for hint in found if hint)


def _in_pieces(timeline: Curves) -> str:
    oom = timeline.answer.out_of_memory
    if oom is None:
        return ""
    reach, requested = oom.device_free + oom.reserved, int(timeline.answer.requested[oom.event])
    if oom.allocated + oom.tried <= reach:
        return (
            f"When memory ran out, {size(oom.device_free)} were free on the device and "
            f"{size(oom.reserved - oom.allocated)} in blocks that the allocator held: "
            f"enough for the {size(oom.tried)}, but not in one piece. It is fragmentation that fails this run."
        )
    if requested + oom.requested <= reach:
        return (
            "When memory ran out, the bytes asked for would have fitted; with what rounding and unsplit remainders "
            "add to them, they did not."
        )
    need = size(requested + oom.requested)
    return (
        f"When memory ran out, {need} were asked for in all, of {size(reach)} that PyTorch could have: no allocator "
        "setting makes that fit."
    )


def _tokens(timeline: Curves) -> str:
    peak = timeline.at_peak(largest=0)
    if peak.by_category.get(Category.UNATTRIBUTED, 0) * 2 > peak.allocated or not peak.allocated:
        return ""
    fixed = sum(peak.by_category.get(kind, 0) for kind in FIXED)
    return (
        f"{size(fixed)} of the peak ({share(fixed, peak.allocated)}) are weights, adapters, gradients and optimizer "
        "state: a smaller batch or "
        f"a shorter sequence leaves them as they are, and can lower only the other {size(peak.allocated - fixed)}."
    )


def _phases(timeline: Curves) -> str:
    peaks: dict[str, int] = {}
    for span in timeline.spans:
        if span.start < timeline.about.first_event:
            continue  # it rebuilds the state in which a recording began
        peaks[span.kind] = max(peaks.get(span.kind, 0), int(timeline.whole.allocated[span.start : span.stop].max()))
    ranked = sorted(peaks.items(), key=lambda item: -item[1])
    if len(ranked) < 2:
        return ""
    (first, most), (second, next_most) = ranked[0], ranked[1]
    gain = size(most - next_most) if most > next_most else "nothing"
    return (
        f"The peak of allocated lies in {first} ({size(most)}). Making {first} cheaper gains {gain} at most: then "
        f"{second}, at {size(next_most)}, sets the peak."
    )


def _first_step(timeline: Curves) -> str:
    steps = timeline.steps_needed
    if len(steps) < 2 or steps[1].peak_allocated <= steps[0].peak_allocated:
        return ""
    more = steps[1].peak_allocated - steps[0].peak_allocated
    return f"Step 1 needs {size(more)} more than step 0: a first step that fits does not show that training fits."


def _retries(timeline: Curves) -> str:
    count = timeline.retries
    if not count or timeline.out_of_memory:
        return ""
    return (
        f"The allocator gave back its cache {count} {'time' if count == 1 else 'times'} to make room; each costs a "
        "wait for the device."
    )
