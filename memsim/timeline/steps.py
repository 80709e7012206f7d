"""Phases and training steps of a Timeline: the numbers that a script gets from torch.cuda.max_memory_allocated() and
memory_stats() at each step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.tape import AGAIN, FLOPS, SECONDS, Tape
from memsim.timeline.step_time import StepTime


@dataclass(frozen=True)
class Span:
    """Consecutive events of one phase: events start … stop-1."""

    phase: str  # "load", "0/forward" …
    start: int
    stop: int

    @property
    def step(self) -> int | None:
        """Number of the training step, None outside of steps."""
        head, _, tail = self.phase.partition("/")
        return int(head) if tail and head.isdigit() else None

    @property
    def kind(self) -> str:
        """The phase without its step: "forward", "load" …"""
        return self.phase.partition("/")[2] or self.phase


@dataclass(frozen=True)
class Step:
    """One training step in bytes. Peaks are over the step, including its starting level, as if peak statistics were
    reset at its start.

    `peak_after_forward` and `peak_after_backward` are the largest allocated so far when the (last) forward and backward
    ended. `retries` and `ooms` count from the start of the Tape.
    """

    step: int
    peak_after_forward: int | None
    peak_after_backward: int | None
    peak_allocated: int
    peak_requested: int
    peak_reserved: int
    end_allocated: int
    end_reserved: int
    peak_segments: int
    retries: int
    ooms: int

    def to_json(self) -> dict[str, int | None]:
        """Returns the keys of a recorded run's steps."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def spans(tape: Tape) -> tuple[Span, ...]:
    """Returns the Tape cut where the phase changes. Gradient accumulation makes a step's forward and backward
    alternate.
    """
    if not len(tape):
        return ()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(tape.phase)) + 1])
    stops = np.concatenate([starts[1:], [len(tape)]])
    return tuple(Span(tape.phases[int(tape.phase[a])], int(a), int(b)) for a, b in zip(starts, stops, strict=True))


def steps(answer: Answer, cut: tuple[Span, ...]) -> tuple[Step, ...]:
    """Returns the steps that were completed, none from the first out of memory on."""
    limit = answer.processed if answer.out_of_memory is None else answer.out_of_memory.event
    numbers = list(dict.fromkeys(span.step for span in cut if span.step is not None))
    done: list[Step] = []
    for number in numbers:
        mine = [span for span in cut if span.step == number]
        if mine[-1].stop > limit:
            break
        done.append(_step(number, mine, answer))
    return tuple(done)


def _step(number: int, mine: list[Span], answer: Answer) -> Step:
    start, stop = mine[0].start, mine[-1].stop

    def peak(counter: NDArray[np.int64], end: int = stop) -> int:
        return int(counter[max(start - 1, 0) : end].max())

    def after(kind: str) -> int | None:
        ends = [span.stop for span in mine if span.kind == kind]
        return peak(answer.allocated, ends[-1]) if ends else None

    return Step(
        step=number,
        peak_after_forward=after("forward"),
        peak_after_backward=after("backward"),
        peak_allocated=peak(answer.allocated),
        peak_requested=peak(answer.requested),
        peak_reserved=peak(answer.reserved),
        end_allocated=int(answer.allocated[stop - 1]),
        end_reserved=int(answer.reserved[stop - 1]),
        peak_segments=peak(answer.segments),
        retries=int(answer.retries[stop - 1]),
        ooms=int(answer.ooms[stop - 1]),
    )


def step_time(tape: Tape, work: NDArray[np.float64], tokens: int, peak: float) -> StepTime | None:
    """The time of the last step from `work` [n, 3]; None where there is no step. `peak` is the device's rate of
    products in 16 bits, in FLOP a second.
    """
    cut = [span for span in spans(tape) if span.step is not None]
    if not cut:
        return None
    seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    again = flops = 0.0
    for span in cut:
        if span.step == cut[-1].step:
            sums = work[span.start : span.stop].sum(axis=0)
            seconds[span.kind] = seconds.get(span.kind, 0.0) + float(sums[SECONDS])
            again += float(sums[AGAIN])
            flops += float(sums[FLOPS])
    return StepTime(seconds["forward"], seconds["backward"] - again, again, seconds["optimizer"], tokens, flops, peak)
