"""Replays a Trace or a Tape: under its own settings, to compare with the recording, or under others, to see what they
would do.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from memsim.allocator import Answer, Settings, allocate
from memsim.allocator.serving import UNLIMITED, allocate_beyond
from memsim.errors import InputError
from memsim.tape import Action, Tape
from memsim.timeline.about import About
from memsim.timeline.curves import Curves
from memsim.traces.trace import Trace
from memsim.units import bytes_of, size as size_words

VERSIONS = ("2.15.0", "2.12.0", "2.11.0")  # one for each order of equal free blocks
ONLY_TOTALS = "a Chrome trace gives totals, not what the allocator was asked"


@dataclass(frozen=True)
class Agreement:
    """How well a replay agrees with a recording. `agree` of the `compared` events do."""

    source: str
    agree: int
    compared: int
    torch: str  # the version whose rules agree best
    first: int | None  # the first event that does not agree
    device: int | None = None  # which of them, where the recording is of several


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
        about = About(
            name=_name(trace),
            facts=(*_facts(trace, trace.answer), ("recorded by", "the profiler: totals, no requests")),
            command=_command(trace, None, None, None),
            first_event=trace.prefix,
        )
        return Curves(trace.tape, trace.answer, about)
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
        name=_name(trace) if trace else "",
        facts=(*(_facts(trace, answer) if trace else ()), ("allocator", text or "default")),
        command=_command(trace, allocator, device_memory, torch) if trace else "",
        allocator=text,
        device_memory=memory if memory < UNLIMITED else None,
        allowed=settings.limit(memory),
        first_event=min(prefix, answer.processed - 1) if prefix else 0,
    )
    return Curves(requests, answer, about, unlimited)


def _name(trace: Trace) -> str:
    """The file's own name, without the folders, which are nobody else's business."""
    return PurePath(trace.source).name


def _facts(trace: Trace, answer: Answer) -> tuple[tuple[str, str], ...]:
    """What a reader needs first: which trace, of which device, and what was there when it began."""
    device = () if trace.device is None else (("recorded on", f"device {trace.device}"),)
    action, storage = trace.tape.action[: trace.prefix], trace.tape.storage[: trace.prefix]
    held = (action == Action.ALLOC) & ~np.isin(storage, storage[action == Action.FREE])
    count = int(held.sum())
    total = int(answer.allocated[min(trace.prefix, answer.processed) - 1]) if count else 0
    words = f"{size_words(total)} in {count:,} {'block' if count == 1 else 'blocks'}"
    begins = (("held at its start", f"{words}, rebuilt from its end"),) if count else ()
    return (("trace", _name(trace)), *device, *begins)


def _command(trace: Trace, allocator: str | None, device_memory: int | str | None, torch: str | None) -> str:
    """What repeats the replay."""
    argv = ["memsim", "replay", trace.source]
    argv += [] if allocator is None else ["--allocator", allocator]
    argv += [] if device_memory is None else ["--device-memory", _size(device_memory)]
    argv += [] if torch is None else ["--torch", torch]
    argv += [] if trace.device is None else ["--device", str(trace.device)]
    return shlex.join([*argv, "-o", "report.html"])


def _size(size: int | str) -> str:
    return f"{size}B" if isinstance(size, int) else size


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
        trace.source,
        int((compared & same).sum()),
        int(compared.sum()),
        version,
        int(wrong[0]) if len(wrong) else None,
        trace.device,
    )
