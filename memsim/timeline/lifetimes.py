"""Storages of a Tape: one row each, with the events between which it is alive. Everything that asks which storages
lived at an event reads this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.tape import Action, Category, Tape


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """One row for each storage (arrays of length s). Lifespans are half-open: alive from event `born` up to, not
    including, event `died`.

    `n`, the number of the Tape's events, stands for "never": `born == n` for an allocation that failed, `died == n` for
    one that is never freed.
    """

    born: NDArray[np.int64]  # [s] event of the ALLOC
    died: NDArray[np.int64]  # [s] event of the FREE
    # [s] event at which the block returned to its pool: later than `died` where another stream was still using it
    released: NDArray[np.int64]
    bytes: NDArray[np.int64]  # [s] bytes requested
    block: NDArray[np.int64]  # [s] bytes of the block that serves it
    address: NDArray[np.int64]  # [s]
    category: NDArray[np.uint8]  # [s] Category
    phase: NDArray[np.int32]  # [s] index into Tape.phases, of the ALLOC
    operator: NDArray[np.int32]  # [s] index into Tape.operators, of the ALLOC
    layer: NDArray[np.int32]  # [s] decoder layer, -1 outside

    def alive(self, event: int) -> NDArray[np.int64]:
        """Returns the numbers of the storages that are allocated just after `event`."""
        return np.flatnonzero((self.born <= event) & (event < self.died))

    def active(self, event: int) -> NDArray[np.int64]:
        """Returns the numbers of those storages, and of the ones whose free waits for another stream."""
        return np.flatnonzero((self.born <= event) & (event < self.released))


def lifetimes(tape: Tape, answer: Answer) -> Lifetimes:
    """Returns the Lifetimes of the storages of `tape` as `answer` served them."""
    n, count, processed = len(tape), tape.storages, answer.processed
    action = tape.action[:processed]
    born = np.full(count, n, np.int64)
    died = np.full(count, n, np.int64)
    allocs = np.flatnonzero(action == Action.ALLOC)
    served = allocs[answer.address[allocs] != -1]
    frees = np.flatnonzero(action == Action.FREE)
    born[tape.storage[served]] = served
    died[tape.storage[frees]] = frees

    def at_birth(values: NDArray[np.generic], missing: int) -> NDArray[np.generic]:
        column = np.full(count, missing, values.dtype)
        column[tape.storage[served]] = values[served]
        return column

    return Lifetimes(
        born=born,
        died=died,
        released=_released(tape, answer, died),
        bytes=at_birth(tape.bytes, 0),  # type: ignore[arg-type]
        block=at_birth(answer.block, 0),  # type: ignore[arg-type]
        address=at_birth(answer.address, 0),  # type: ignore[arg-type]
        category=at_birth(tape.category, Category.UNATTRIBUTED),  # type: ignore[arg-type]
        phase=at_birth(tape.phase, 0),  # type: ignore[arg-type]
        operator=at_birth(tape.operator, 0),  # type: ignore[arg-type]
        layer=at_birth(tape.layer, -1),  # type: ignore[arg-type]
    )


def _released(tape: Tape, answer: Answer, died: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the event at which each freed block returned to its pool. A free of a storage that other streams used
    waits for them, and is noticed at the next ALLOC.

    A Tape with COMPLETE events says when a stream was done. Without them streams are done at once. EMPTY_CACHE and a
    retry wait for every stream.
    """
    marks = np.flatnonzero(tape.action[: answer.processed] == Action.RECORD_STREAM)
    released = died.copy()
    if not len(marks):
        return released
    n, action = len(tape), tape.action[: answer.processed]
    own = np.zeros(tape.storages, np.int64)
    allocs = np.flatnonzero(action == Action.ALLOC)
    own[tape.storage[allocs]] = tape.stream[allocs]
    completes = np.flatnonzero(action == Action.COMPLETE)
    notices = np.flatnonzero((action == Action.ALLOC) | (action == Action.EMPTY_CACHE))
    retried = np.flatnonzero(np.diff(answer.retries[: answer.processed], prepend=0) > 0)
    waits = np.union1d(np.flatnonzero(action == Action.EMPTY_CACHE), retried)

    def first(events: NDArray[np.int64], after: int) -> int:
        place = int(np.searchsorted(events, after, side="right"))
        return int(events[place]) if place < len(events) else n

    for storage, stream in {(int(tape.storage[e]), int(tape.stream[e])) for e in marks}:
        free = int(died[storage])
        if stream == own[storage] or free == n:
            continue
        done = first(completes[tape.stream[completes] == stream], free) if len(completes) else free
        noticed = min(first(notices, done), first(waits, free))
        released[storage] = max(released[storage], noticed)
    return released


def curves(tape: Tape, answer: Answer, lives: Lifetimes) -> dict[Category, NDArray[np.int64]]:
    """Returns bytes requested and not yet freed, by category, after each event ([n] each). Only the categories that
    occur are there, in Category's order.
    """
    signed = np.zeros(len(tape), np.int64)
    of_event = np.full(len(tape), 255, np.uint8)
    born, died = lives.born[lives.born < len(tape)], np.flatnonzero((lives.died < len(tape)) & (lives.born < len(tape)))
    served = np.flatnonzero(lives.born < len(tape))
    signed[born] = lives.bytes[served]
    of_event[born] = lives.category[served]
    signed[lives.died[died]] = -lives.bytes[died]
    of_event[lives.died[died]] = lives.category[died]
    present = np.unique(lives.category[served])
    return {Category(int(c)): np.cumsum(np.where(of_event == c, signed, 0)) for c in present}
