"""The answer in a sentence: how much, whether it fits, on what it would, and what holds the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.allocator.answer import OutOfMemory
from memsim.report.cured import cured
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT, phase_words
from memsim.units import GIB, capacity, duration, gib, percent, share, size

if TYPE_CHECKING:
    from memsim.tape import Tape
    from memsim.timeline.curves import Curves


def headline(timeline: Curves) -> str:
    """The answer in a few sentences, for the last lines in a terminal."""
    return " ".join(sentences(timeline))


def sentences(timeline: Curves) -> tuple[str, ...]:
    """The sentences of the headline; the first is the answer."""
    about, oom = timeline.about, timeline.answer.out_of_memory
    if not timeline.whole.processed:
        return ("Nothing is allocated.",)
    where = (
        f"Out of memory in {place(timeline.tape, oom.event, about.first_event)}: {missing(oom)}."
        if oom is not None
        else ""
    )
    if oom is not None and timeline.unlimited is None:
        return tuple(sentence for sentence in (where, dominant(timeline)) if sentence)
    if timeline.peak_reserved < GIB:
        answer = f"Peak {size(timeline.peak_reserved)} reserved ({size(timeline.peak_allocated)} allocated)"
    else:
        answer = f"Peak {gib(timeline.peak_reserved)} reserved ({gib(timeline.peak_allocated, unit=False)} allocated)"
    verdict = _verdict(timeline)
    answer = f"{answer}: {verdict}" if verdict else answer
    others = _others(timeline.peak_reserved, about.devices) if oom is not None or not about.device_memory else ""
    answer = f"{answer}; {others}" if others else answer
    return tuple(
        sentence
        for sentence in (f"{answer}.", where, dominant(timeline), paged(timeline), pace(timeline), cured(timeline))
        if sentence
    )


def paged(timeline: Curves) -> str:
    """What a paged optimizer keeps beside the device, as a sentence; empty for any other."""
    held = timeline.about.paged_state
    return (
        (
            f"Beside it {gib(held)} of optimizer state is paged: managed memory, on the host until the optimizer's "
            "kernels want it."
        )
        if held
        else ""
    )


def pace(timeline: Curves) -> str:
    """How long a step is estimated to take, as a sentence; empty where nothing is known of time."""
    time, rates = timeline.step_time, timeline.about.rates
    if time is None or rates is None or not time.total:
        return ""
    again = f"; recomputation adds {percent(time.overhead)}" if time.recomputation else ""
    return (
        f"A step takes about {duration(time.total)} on {rates.device.label} ({time.tokens_per_second:,.0f} tokens/s, "
        f"{percent(time.mfu)} MFU){again}."
    )


def _verdict(timeline: Curves) -> str:
    about, oom = timeline.about, timeline.answer.out_of_memory
    if not about.device_memory:
        return ""
    device = f"one {about.device}" if about.device else f"{capacity(about.device_memory)} of device memory"
    beside = f" ({about.counted})" if about.counted else ""
    if oom is not None:
        return f"does not fit {device}{beside}"
    retries = timeline.retries
    if retries:
        times = f"{retries} {'time' if retries == 1 else 'times'}"
        return f"fits {device}, but only by giving back its cache {times}{beside}"
    spare = f"{gib(timeline.spare or 0)} to spare"
    of = f" of {about.counted}" if about.counted else ""
    if about.allowed is not None and about.allowed < about.device_memory:
        of = f" of the {gib(about.allowed)} that per_process_memory_fraction allows"
    how = ", but tightly:" if timeline.verdict == "tight" else " with"
    return f"fits {device}{how} {spare}{of}"


def _others(peak: int, devices: tuple[tuple[str, int], ...]) -> str:
    """The two smallest devices that hold the peak, by name."""
    fitting = sorted((memory, name) for name, memory in devices if memory >= peak)
    if not devices:
        return ""
    if not fitting:
        memory, name = max((memory, name) for name, memory in devices)
        return f"no single device of the catalogue holds it (the largest, {name}, has {capacity(memory)})"
    names = " and ".join(f"{name} ({capacity(memory)})" for memory, name in fitting[:2])
    return f"the smallest devices that hold it are {names}" if len(fitting) > 1 else f"only {names} holds it"


def missing(oom: OutOfMemory) -> str:
    """How much was asked for, and how much was not there."""
    if oom.tried > oom.device_free:
        return f"{size(oom.tried)} asked for, {size(oom.device_free)} free, {size(oom.tried - oom.device_free)} missing"
    return f"{size(oom.tried)} asked for, with {size(oom.reserved)} reserved of {size(oom.device_memory)}"


def dominant(timeline: Curves) -> str:
    """What holds most of the memory at the peak of allocated, as a sentence; empty where the Tape does not say."""
    peak = timeline.at_peak(largest=0)
    parts = {CATEGORY_NAMES[kind]: count for kind, count in peak.by_category.items()} | {UNSPLIT: peak.unsplit}
    if not peak.allocated or parts.get("unattributed", 0) * 2 > peak.allocated:
        return ""
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    (first, most), (second, more) = ranked[0], ranked[1]
    verb = "holds" if first in ("scratch", "recomputation", "optimizer state", UNSPLIT) else "hold"
    sentence = f"{first.capitalize()} {verb} {share(most, peak.allocated)} of the peak"
    return f"{sentence}, {second} {share(more, peak.allocated)}." if more * 20 >= peak.allocated else f"{sentence}."


def place(tape: Tape, event: int, first: int = 0) -> str:
    """Where an event happens: "step 1 forward, layer 3, self_attn.q_proj"; of a recording that does not say, which of
    its events it is, counted from `first`.
    """
    words = [words] if (words := phase_words(tape.phases[tape.phase[event]])) else []
    if tape.layer[event] >= 0:
        words.append(f"layer {tape.layer[event]}")
    operator = tape.operators[tape.operator[event]] if tape.operators else ""
    return ", ".join([*words, operator] if operator else words) or f"event {event - first:,}"
