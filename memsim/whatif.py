"""The same requests under several settings, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.table import Table

from memsim.allocator import Settings, allocate
from memsim.replayed import UNLIMITED, bytes_of, replay
from memsim.search.smallest import MIB, smallest
from memsim.traces.trace import Trace


@dataclass(frozen=True)
class Outcome:
    """What one setting does to a trace; sizes in bytes."""

    source: str
    allocator: str
    peak_reserved: int
    peak_allocated: int
    unallocated_at_peak: int  # reserved but not allocated when reserved was largest
    driver_calls: int
    retries: int
    out_of_memory_event: int | None  # index into the tape; counters are then those up to it
    smallest_device: int | None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def outcome(trace: Trace, allocator: str | None, device_memory: int | str | None, torch: str | None, search: bool) -> Outcome:
    """What the setting (None: the trace's own) does. Raises InputError."""
    memory = bytes_of(device_memory)
    answer = replay(trace, allocator, memory, torch).answer
    text = trace.settings if allocator is None else allocator
    done = answer.processed
    peak = int(answer.reserved[:done].argmax()) if done else 0
    failed = answer.out_of_memory
    return Outcome(
        trace.source,
        text,
        int(answer.reserved[peak]) if done else 0,
        int(answer.allocated[:done].max()) if done else 0,
        int(answer.reserved[peak] - answer.allocated[peak]) if done else 0,
        len(answer.driver_event),
        int(answer.retries[done - 1]) if done else 0,
        None if failed is None else failed.event,
        least_memory(trace, text, torch) if search else None,
    )


def least_memory(trace: Trace, allocator: str, torch: str | None = None) -> int:
    """The least bytes of device memory, to 1 MiB, with which no request of the trace fails under the setting."""
    version = torch or trace.torch
    settings = Settings.parse(allocator, **({"torch": version} if version else {}))
    whole = allocate(trace.tape, settings, UNLIMITED, prefix=trace.prefix)
    if not len(trace.tape):
        return 0
    low, high = int(whole.allocated.max()) - MIB, int(whole.reserved.max())

    def survives(memory: int) -> bool:
        return allocate(trace.tape, settings, memory, prefix=trace.prefix).out_of_memory is None

    while high < UNLIMITED // 2 and not survives(max(high, MIB)):  # a memory fraction leaves part of the device unused
        low, high = high, 2 * max(high, MIB)
    return smallest(survives, max(low, 0), max(high, MIB))


def table(rows: list[Outcome]) -> Table:
    """The rows as a table, sizes in GiB."""
    made = Table("trace", "allocator", box=None)
    for name in ("peak reserved GiB", "peak allocated GiB", "unallocated at peak GiB", "driver calls", "retries", "out of memory at event"):
        made.add_column(name, justify="right")
    searched = any(row.smallest_device is not None for row in rows)
    if searched:
        made.add_column("smallest device GiB", justify="right")
    for row in rows:
        sizes = [f"{size / 2**30:.3f}" for size in (row.peak_reserved, row.peak_allocated, row.unallocated_at_peak)]
        failed = "-" if row.out_of_memory_event is None else str(row.out_of_memory_event)
        last = [f"{row.smallest_device / 2**30:.3f}"] if searched and row.smallest_device is not None else []
        made.add_row(row.source.rsplit("/", 1)[-1], row.allocator or "default", *sizes, str(row.driver_calls), str(row.retries), failed, *last)
    return made
