"""What a Tape and an allocator's answer to it say about a training job, event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.allocator.message import out_of_memory_message
from memsim.tape import SECONDS, Action, Category, Tape
from memsim.timeline.about import About
from memsim.timeline.blockmap import BlockMap, Fragmentation, block_map, fragmentation
from memsim.timeline.frames import needed_pandas
from memsim.timeline.lifetimes import Lifetimes, curves, lifetimes
from memsim.timeline.moment import Moment, moment
from memsim.timeline.step_time import StepTime
from memsim.timeline.steps import Span, Step, spans, step_time, steps
from memsim.version import version

if TYPE_CHECKING:
    import pandas

    from memsim.allocator.bound import Bounds

# What is left of a device below which a run that fits is tight: other processes, and libraries that ask the driver
# themselves, may take as much.
TIGHT_SHARE, TIGHT_BYTES = 0.03, 2**29
MOST_PAIRS = 100_000_000  # of storages alive together, for which a packing is looked for: about a second


@dataclass(frozen=True, eq=False)
class Curves:
    """A Tape, the answer to it, and what follows from the two. memsim.Timeline can also print, draw and write it.

    Counters are bytes after each event.

    `unlimited` is the answer of the same allocator without a memory limit. Where `answer` ends at out of memory, it
    says how much would have been needed.
    """

    tape: Tape
    answer: Answer
    about: About = field(default_factory=About)
    unlimited: Answer | None = None

    @cached_property
    def whole(self) -> Answer:
        """The answer that goes furthest, which curves, peaks and the report show."""
        return self.answer if self.unlimited is None else self.unlimited

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The Tape's phases in order, as far as they were answered."""
        return tuple(
            Span(s.phase, s.start, min(s.stop, self.whole.processed))
            for s in spans(self.tape)
            if s.start < self.whole.processed
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps that the device completes."""
        return steps(self.answer, spans(self.tape))

    @cached_property
    def steps_needed(self) -> tuple[Step, ...]:
        """The steps as they would be without a memory limit, where that is known."""
        return steps(self.whole, spans(self.tape))

    @property
    def out_of_memory(self) -> bool:
        """True if the device ran out of memory."""
        return self.answer.out_of_memory is not None

    @property
    def verdict(self) -> str | None:
        """Whether the device completes the steps: "fits", "tight" where it does with less than 3 % or half a GiB to
        spare or by giving back its cache, "no"; None where nothing is known of the device.
        """
        if self.out_of_memory:
            return "no"
        room, spare = self.room, self.spare
        if room is None or spare is None:
            return None
        return "tight" if self.retries or spare < TIGHT_SHARE * room or spare < TIGHT_BYTES else "fits"

    @property
    def room(self) -> int | None:
        """Bytes that the allocator may reserve of the device; None where nothing is known of it."""
        memory, allowed = self.about.device_memory, self.about.allowed
        return memory if memory is None or allowed is None else min(memory, allowed)

    @property
    def spare(self) -> int | None:
        """Bytes of those that the peak of reserved leaves, below zero where it needs more."""
        return None if self.room is None else self.room - self.peak_reserved

    @property
    def retries(self) -> int:
        """How often the allocator gave back its cache to make room."""
        return int(self.answer.retries[self.answer.processed - 1]) if self.answer.processed else 0

    @property
    def peak_reserved(self) -> int:
        """Largest number of reserved bytes."""
        return self._peak(self.whole.reserved)

    @property
    def peak_allocated(self) -> int:
        """Largest number of allocated bytes."""
        return self._peak(self.whole.allocated)

    @property
    def peak_requested(self) -> int:
        """Largest number of requested bytes."""
        return self._peak(self.whole.requested)

    @cached_property
    def loaded_allocated(self) -> int:
        """Bytes allocated once the model is loaded."""
        event = self.about.loaded_event
        if event is None:
            loads = [span.stop for span in self.spans if span.phase == "load"]
            # some optimizers begin with their state
            loaded = self.tape.category[: loads[-1] if loads else 0] != Category.OPTIMIZER_STATE
            event = int(np.flatnonzero(loaded)[-1]) if loaded.any() else -1
        return int(self.whole.allocated[event]) if event >= 0 else 0

    @cached_property
    def lifetimes(self) -> Lifetimes:
        """The events between which each storage lived."""
        return lifetimes(self.tape, self.whole)

    @cached_property
    def curves(self) -> dict[Category, NDArray[np.int64]]:
        """[n] Bytes requested by category after each event. With `unsplit` they add up to allocated."""
        return curves(self.tape, self.whole, self.lifetimes)

    @cached_property
    def unsplit(self) -> NDArray[np.int64]:
        """[n] Bytes that blocks hold beyond those requested, from rounding and from remainders too
        small to split off.
        """
        total = np.zeros(len(self.tape), np.int64)
        for curve in self.curves.values():
            total += curve
        return self.whole.allocated - total

    def _peak(self, counter: NDArray[np.int64]) -> int:
        since = counter[self.about.first_event :]
        return int(since.max()) if len(since) else 0

    def peak_event(self, metric: str = "allocated") -> int:
        """Returns the first event at which `metric` (requested, allocated, active or reserved) is largest."""
        counter: NDArray[np.int64] = getattr(self.whole, metric)
        first = self.about.first_event
        return first + int(np.argmax(counter[first:])) if len(counter) > first else 0

    def at_peak(self, metric: str = "allocated", largest: int = 20) -> Moment:
        """Returns the storages that were alive when `metric` was largest."""
        return self.alive_at(self.peak_event(metric), largest)

    def alive_at(self, event: int, largest: int = 20) -> Moment:
        """Returns the storages that were alive just after `event`, the `largest` of them by name. Raises IndexError for
        an event that was not answered.
        """
        if not 0 <= event < self.whole.processed:
            raise IndexError(f"event {event} is not among the {self.whole.processed} events of this Timeline")
        return moment(self.tape, self.whole, self.lifetimes, event, largest)

    def block_map(self, event: int) -> BlockMap:
        """Returns segments and blocks just after `event`."""
        return block_map(self.whole, self.lifetimes, event)

    def fragmentation(self, metric: str = "reserved") -> Fragmentation:
        """Returns how reserved memory fails to be allocated, when `metric` was largest."""
        return self.fragmentation_at(self.peak_event(metric))

    def fragmentation_at(self, event: int) -> Fragmentation:
        """Returns how reserved memory fails to be allocated just after `event`."""
        return fragmentation(self.whole, self.block_map(event), event)

    @cached_property
    def time(self) -> NDArray[np.float64] | None:
        """[n] Estimated seconds from the first step's start to each event; None where nothing is known of time."""
        return None if self.tape.work is None else np.cumsum(self.tape.work[:, SECONDS])

    @cached_property
    def step_time(self) -> StepTime | None:
        """The estimated time of the last step; None where nothing is known of time."""
        if self.tape.work is None or self.about.rates is None:
            return None
        return step_time(self.tape, self.tape.work, self.about.tokens, self.about.rates.half)

    @cached_property
    def bounds(self) -> Bounds | None:
        """Memory that the requests alone need, that a placement which knows all lifetimes needs, and that was reserved.
        None where only totals are known.
        """
        from memsim.allocator.bound import bounds

        return (
            bounds(self.tape, self.whole, first=self.about.first_event, most_pairs=MOST_PAIRS)
            if len(self.whole.driver_event)
            else None
        )

    def to_json(self) -> dict[str, object]:
        """Returns the keys of a recorded run's result, in bytes."""
        data: dict[str, object] = {} if self.about.run is None else {"run": dict(self.about.run)}
        return (
            data
            | {
                "versions": {"memsim": version(), **self.about.versions},
                "parameters": self.about.parameters,
                "trainable_parameters": self.about.trainable_parameters,
                "loaded_allocated": self.loaded_allocated,
                "paged_state": self.about.paged_state,
                "steps": [step.to_json() for step in self.steps],
                "fits": not self.out_of_memory,
                "verdict": self.verdict,
                "device_memory": self.about.device_memory,
                "device_memory_counted": self.about.counted or None,
                "oom": out_of_memory_message(self.answer.out_of_memory, self.about.context),
                "peak_allocated": self.peak_allocated,
                "peak_reserved": self.peak_reserved,
                "peak_requested": self.peak_requested,
            }
            | ({} if self.step_time is None else {"time": self.step_time.to_json()})
            | ({} if self.about.cures is None else {"cures": [cure.to_json() for cure in self.about.cures]})
        )

    def to_frame(self) -> pandas.DataFrame:
        """Returns a row for each event: action, bytes, operator, layer, phase, category, the counters in bytes, and the
        estimated time in seconds.

        Raises ImportError where pandas is not installed.
        """
        pandas = needed_pandas()
        n = self.whole.processed
        tape, names = self.tape, np.array([kind.name.lower() for kind in Category])
        columns: dict[str, object] = {
            "action": np.array([action.name.lower() for action in Action])[tape.action[:n]],
            "bytes": tape.bytes[:n],
            "operator": pandas.Categorical.from_codes(tape.operator[:n], list(tape.operators))
            if tape.operators
            else "",
            "layer": tape.layer[:n],
            "phase": pandas.Categorical.from_codes(tape.phase[:n], list(tape.phases)),
            "category": names[tape.category[:n]],
            **{name: getattr(self.whole, name)[:n] for name in ("requested", "allocated", "active", "reserved")},
        }
        if self.time is not None:
            columns["time"] = self.time[:n]
        return pandas.DataFrame(columns)
