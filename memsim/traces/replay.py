"""Replays a Trace or a Tape: under its own settings, to compare with the recording, or under others, to see what they
would do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memsim.allocator import Answer, Settings, allocate
from memsim.allocator.serving import UNLIMITED, allocate_beyond
from memsim.errors import InputError
from memsim.tape import Action, Tape
from memsim.timeline.about import About
from memsim.timeline.curves import Curves
from memsim.traces.trace import Trace
from memsim.units import bytes_of

VERSIONS = ("2.15.0", "2.12.0", "2.11.0")  # one for each order of equal free blocks
ONLY_TOTALS = "a Chrome trace gives totals, not what the allocator was asked"


@dataclass(frozen=True)
class Agreement:
    """How well a replay agrees with a recording. `agree` of the `compared` events do."""

    source: str
    agree: int
    compared: int
    torch: str  # the version whose rules agree best
    first: int | None  # the first event that does not agree; None where all do


def replay(
    tape: Tape | Trace, allocator: str | None = None, device_memory: int | str | None = None, torch: str | None = None
) -> Curves:
    """Returns the Timeline of the same requests under a setting string (default: the trace's) on a device (bytes or
    "24GiB"; default: the trace's, or unlimited).

    Raises InputError for settings that PyTorch refuses, and for new settings or a device with a trace of totals.
    """
    trace = tape if isinstance(tape, Trace) else None
    if trace is not None and trace.answer is not None:
        if allocator is not None or device_memory is not None:
            raise InputError(
                f"{trace.source}: {ONLY_TOTALS}, and cannot be replayed under settings or a device's memory; a "
                "snapshot can"
            )
        return Curves(
            trace.tape,
            trace.answer,
            About(
                name=trace.source,
                facts=(("recorded by", "the profiler: totals, no requests"),),
                first_event=trace.prefix,
            ),
        )
    requests = tape.tape if isinstance(tape, Trace) else tape
    text = allocator if allocator is not None else trace.settings if trace else ""
    memory = bytes_of(device_memory)
    if memory is None:
        memory = (trace.device_memory if trace else None) or UNLIMITED
    version = torch or (trace.torch if trace else None)
    settings = Settings.parse(text, **({"torch": version} if version else {}))
    prefix = trace.prefix if trace else 0
    answer, unlimited = allocate_beyond(requests, settings, memory, prefix=prefix)
    about = About(
        name=trace.source if trace else "",
        facts=(("allocator", text or "default"),),
        allocator=text,
        device_memory=memory if memory < UNLIMITED else None,
        allowed=settings.limit(memory),
        first_event=min(prefix, answer.processed - 1) if prefix else 0,
    )
    return Curves(requests, answer, about, unlimited)


def check(trace: Trace, torch: str | None = None) -> Agreement:
    """Compares a replay under the trace's own settings with its recording. Where no version is known, each order of
    equal free blocks is tried. Raises InputError where nothing was recorded to compare with.
    """
    if trace.answer is not None:
        raise InputError(f"{trace.source}: {ONLY_TOTALS}; --check has nothing to compare with")
    if not trace.known.any():
        raise InputError(f"{trace.source}: records no addresses; --check has nothing to compare with")
    known = torch or trace.torch
    best: Agreement | None = None
    for version in (known,) if known else VERSIONS:
        settings = Settings.parse(trace.settings, torch=version)
        given = trace.segments if len(trace.segments) else None
        answer = allocate(
            trace.tape,
            settings,
            trace.device_memory or UNLIMITED,
            stop_at_oom=False,
            addresses=given,
            prefix=trace.prefix,
        )
        found = _compare(trace, answer, version)
        if best is None or found.agree > best.agree:
            best = found
        if best.agree == best.compared:
            break
    assert best is not None
    return best


def _compare(trace: Trace, answer: Answer, version: str) -> Agreement:
    compared = trace.known if trace.reserved is None else np.ones(len(trace.tape), bool)
    allocs = trace.tape.action == Action.ALLOC
    same = ~(allocs & trace.known) | (answer.address == trace.address)
    if trace.reserved is not None:
        same &= answer.reserved == trace.reserved
    same[answer.processed :] = False
    wrong = np.flatnonzero(compared & ~same)
    return Agreement(
        trace.source, int((compared & same).sum()), int(compared.sum()), version, int(wrong[0]) if len(wrong) else None
    )
