"""Compares the same requests under several settings, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from memsim.allocator import Settings, allocate
from memsim.allocator.serving import UNLIMITED
from memsim.errors import InputError
from memsim.search.smallest import smallest
from memsim.traces.replay import ONLY_TOTALS, replay
from memsim.traces.trace import Trace
from memsim.units import MIB, bytes_of


@dataclass(frozen=True)
class Outcome:
    """What one setting does to a trace. Sizes are in bytes."""

    source: str
    allocator: str
    peak_reserved: int
    peak_allocated: int
    unallocated_at_peak: int  # reserved but not allocated when reserved was largest
    driver_calls: int
    retries: int
    out_of_memory_event: int | None  # counted from the recording's first event; negative: its first state does not fit
    smallest_device: int | None
    device: int | None = None  # which of them, where the trace is of several

    def to_json(self) -> dict[str, object]:
        """Returns the outcome as plain data."""
        return asdict(self)


def outcome(
    trace: Trace, allocator: str | None, device_memory: int | str | None, torch: str | None, search: bool
) -> Outcome:
    """Returns what the setting (None: the trace's own) does. Raises InputError."""
    memory = bytes_of(device_memory)
    answer = replay(trace, allocator, memory, torch).answer
    text = trace.settings if allocator is None else allocator
    done = answer.processed
    first = min(trace.prefix, max(done - 1, 0))  # events that rebuild the recording's first state do not count
    peak = first + int(answer.reserved[first:done].argmax()) if done else 0
    failed = answer.out_of_memory
    return Outcome(
        trace.source,
        text,
        int(answer.reserved[peak]) if done else 0,
        int(answer.allocated[first:done].max()) if done else 0,
        int(answer.reserved[peak] - answer.allocated[peak]) if done else 0,
        int((answer.driver_event >= first).sum()),
        int(answer.retries[done - 1]) if done else 0,
        None if failed is None else failed.event - trace.prefix,
        least_memory(trace, text, torch) if search else None,
        trace.device,
    )


def least_memory(trace: Trace, allocator: str, torch: str | None = None) -> int:
    """Least bytes of device memory, to 1 MiB, with which no request of the trace fails under the setting. Raises
    InputError.
    """
    if trace.answer is not None:
        raise InputError(f"{trace.source}: {ONLY_TOTALS}; the smallest device cannot be found by replaying it")
    version = torch or trace.torch
    settings = Settings.parse(allocator, **({"torch": version} if version else {}))
    whole = allocate(trace.tape, settings, UNLIMITED, prefix=trace.prefix)
    if not len(trace.tape):
        return 0
    low, high = int(whole.allocated.max()) - MIB, int(whole.reserved.max())

    def survives(memory: int) -> bool:
        return allocate(trace.tape, settings, memory, prefix=trace.prefix).out_of_memory is None

    while high < UNLIMITED // 2 and not survives(max(high, MIB)):  # a memory fraction leaves part of it unused
        low, high = high, 2 * max(high, MIB)
    return smallest(survives, max(low, 0), max(high, MIB))
