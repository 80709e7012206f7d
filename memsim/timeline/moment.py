"""What was alive at one moment: by category, by layer, and the largest storages by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memsim.allocator.answer import Answer
from memsim.tape import Category, Tape
from memsim.timeline.lifetimes import Lifetimes


@dataclass(frozen=True)
class Alive:
    """Storages of one kind, alive together: same operator, category, phase and bytes. They may lie in
    several layers.
    """

    operator: str
    phase: str  # the phase in which they were allocated
    category: Category
    layers: tuple[int, ...]  # decoder layers, ascending; -1 outside
    count: int
    bytes: int  # requested by each
    total: int


@dataclass(frozen=True)
class Moment:
    """The storages that were alive just after one event. `by_category` and `unsplit` add up to `allocated`; `by_layer`
    adds up to `by_category`.
    """

    event: int
    phase: str
    operator: str
    layer: int
    requested: int
    allocated: int
    active: int
    reserved: int
    by_category: dict[Category, int]  # bytes requested
    unsplit: int  # bytes that blocks hold beyond those requested
    by_layer: dict[int, dict[Category, int]]  # by decoder layer; -1 is outside: embedding, head, loss, optimizer
    largest: tuple[Alive, ...]  # largest total first


def moment(tape: Tape, answer: Answer, lives: Lifetimes, event: int, largest: int = 20) -> Moment:
    """Returns the Moment just after `event`."""
    alive = lives.alive(event)
    size, category, layer = lives.bytes[alive], lives.category[alive], lives.layer[alive]
    by_layer: dict[int, dict[Category, int]] = {}
    pairs, inverse = np.unique(
        np.stack([layer.astype(np.int64), category.astype(np.int64)], axis=1), axis=0, return_inverse=True
    )
    sums = np.zeros(len(pairs), np.int64)
    np.add.at(sums, inverse.reshape(-1), size)
    by_category = dict.fromkeys(sorted(Category(int(c)) for c in np.unique(category)), 0)
    for (where, kind), total in zip(pairs.tolist(), sums.tolist(), strict=True):
        by_layer.setdefault(where, {})[Category(kind)] = total
        by_category[Category(kind)] += total
    return Moment(
        event=event,
        phase=tape.phases[tape.phase[event]],
        operator=tape.operators[tape.operator[event]] if tape.operators else "",
        layer=int(tape.layer[event]),
        requested=int(answer.requested[event]),
        allocated=int(answer.allocated[event]),
        active=int(answer.active[event]),
        reserved=int(answer.reserved[event]),
        by_category=by_category,
        unsplit=int(lives.block[alive].sum() - size.sum()),
        by_layer=by_layer,
        largest=_largest(tape, lives, alive, largest),
    )


def _largest(
    tape: Tape, lives: Lifetimes, alive: np.ndarray[tuple[int], np.dtype[np.int64]], count: int
) -> tuple[Alive, ...]:
    keys = np.stack(
        [lives.operator[alive], lives.phase[alive], lives.category[alive], lives.bytes[alive]], axis=1
    ).astype(np.int64)
    kinds, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    found: list[Alive] = []
    for kind in np.argsort(-(kinds[:, 3] * counts), kind="stable")[:count].tolist():
        operator, phase, category, size = kinds[kind].tolist()
        layers = tuple(np.unique(lives.layer[alive[inverse == kind]]).tolist())
        name = tape.operators[operator] if tape.operators else ""
        found.append(
            Alive(
                name, tape.phases[phase], Category(category), layers, int(counts[kind]), size, size * int(counts[kind])
            )
        )
    return tuple(found)
