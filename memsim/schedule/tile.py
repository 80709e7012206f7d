"""From a few executed layers and steps to the whole Tape: layers that repeat and the last step are repeated as arrays.

Where layers repeat, singly or in periods of several, three repetitions are executed: the one in the middle has ordinary
neighbours on both sides, so its events stand for all but the first and the last. A storage is known by the repetition
that allocated it and its rank among that one's storages, which is how an event of one finds its neighbour's storage in
every copy. Where what is executed does not repeat (`Irregular`), all layers are executed instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.cost.roofline import Rates
from memsim.machine.storages import NO_LAYER, Machine
from memsim.schedule.timing import Columns, work_of
from memsim.tape import Action, Category, Tape

LEAST = 4  # repetitions that are worth it
Ints = NDArray[np.int64]


class Irregular(Exception):
    """The executed layers are not repetitions of each other."""


@dataclass(frozen=True)
class Repeat:
    """Layers of an executed model that stand for several: those from `start` on, so many, repeated so many times."""

    start: int
    period: int
    copies: int


def repeats_of(layers: Sequence[Hashable], begins: Sequence[bool]) -> tuple[list[int], tuple[Repeat, ...]]:
    """Which layers to execute, and which of those repeat; layers that are equal are alike. The first layer and the last
    are never repeated.

    begins: whether a layer is the first of what is checkpointed as one, which is never divided.
    """
    n = len(layers)
    first = next((i for i in range(1, n) if begins[i]), n)
    last = next((i for i in range(n - 1, 0, -1) if begins[i]), n)
    kept, repeats = list(range(min(first, n))), []
    at = first
    while at < last:
        period, times = _period(layers, begins, at, last)
        if times < LEAST:
            kept.append(at)
            at += 1
            continue
        repeats.append(Repeat(len(kept) + period, period, times - 2))
        end = at + period * times
        kept += [*range(at, at + 2 * period), *range(end - period, end)]
        at = end
    return kept + list(range(at, n)), tuple(repeats)


def _period(layers: Sequence[Hashable], begins: Sequence[bool], at: int, end: int) -> tuple[int, int]:
    """The shortest period that repeats often enough from a layer on, and how often."""
    if begins[at]:
        for period in range(1, (end - at) // LEAST + 1):
            stop = at + period
            while stop < end and layers[stop] == layers[stop - period]:
                stop += 1
            times = (stop - at) // period
            if times >= LEAST and (at + period == len(begins) or begins[at + period]):
                return period, times
    return 1, 1


@dataclass(frozen=True)
class Events:
    """A machine's events as arrays: n events, s storages."""

    action: Ints  # [n]
    storage: Ints  # [n]
    phase: Ints  # [n]
    layer: Ints  # [n]
    operator: Ints  # [n]
    bytes: Ints  # [s]
    category: Ints  # [s]
    owner: Ints  # [s] the layer that allocated it
    phases: tuple[str, ...]
    operators: tuple[str, ...]
    work: Columns  # [n, 3] (schedule/timing.py)


def events_of(machine: Machine, rates: Rates | None = None) -> Events:
    """The machine's lists as arrays, with times where there are rates."""
    n = len(machine.actions)
    names: dict[str, int] = {}
    rows = [(at, phase, layer, names.setdefault(operator, len(names))) for at, phase, layer, operator in machine.marks]
    marks = np.array(rows, np.int64).reshape(-1, 4)
    counts = np.diff(np.append(marks[:, 0], n))
    phase, layer, operator = (np.repeat(marks[:, column], counts) for column in (1, 2, 3))
    action, storage = np.array(machine.actions, np.int64), np.array(machine.events, np.int64)
    sizes, category, owner = (np.array(values, np.int64) for values in (machine.bytes, machine.category, machine.owner))
    return Events(
        action,
        storage,
        phase,
        layer,
        operator,
        sizes,
        category,
        owner,
        tuple(machine.phases),
        tuple(names),
        work_of(machine, rates),
    )


FAR, BEFORE, MIDDLE, AFTER, BEYOND = range(5)  # where a layer is, as seen from the repeated ones


def tile_layers(events: Events, repeats: Sequence[Repeat]) -> Events:
    """The events of the whole model, from those of one that executes each repetition three times. Raises Irregular."""
    for repeat in reversed(repeats):
        events = _tile(events, repeat)
    return events


def _tile(events: Events, repeat: Repeat) -> Events:
    start, period, copies = repeat.start, repeat.period, repeat.copies
    layers = int(max(events.owner.max(initial=0), events.layer.max(initial=0))) + 1
    place = np.full(layers + 1, FAR)
    place[start - period : start], place[start : start + period], place[start + period : start + 2 * period] = (
        BEFORE,
        MIDDLE,
        AFTER,
    )
    place[start + 2 * period :] = BEYOND
    place[-1] = NO_LAYER  # which -1 finds
    owner, s = place[events.owner], len(events.bytes)
    rank = np.zeros(s, np.int64)
    members = [np.flatnonzero(owner == at) for at in (BEFORE, MIDDLE, AFTER)]
    for ids in members:
        rank[ids] = np.arange(len(ids))
    before, middle, after = members
    if not all(
        len(ids) == len(middle) and (events.bytes[ids] == events.bytes[middle]).all() for ids in (before, after)
    ):
        raise Irregular
    ranks = len(middle)
    # the storage of each rank, of the one before, each copy, and the one after
    table = np.empty((copies + 2, ranks), np.int64)
    table[0], table[-1] = before, after
    table[1] = middle  # the first copy keeps the executed numbers
    table[2:-1] = s + np.arange((copies - 1) * ranks).reshape(copies - 1, ranks)

    real_layer = np.arange(layers + 1)
    real_layer[start + period :] += (copies - 1) * period
    real_layer[-1] = NO_LAYER
    storage = events.storage
    of = np.where(storage < 0, NO_LAYER, owner[storage])
    neighbours = (of >= BEFORE) & (of <= AFTER)
    own = place[events.layer]
    if np.any(neighbours & (of != own) & (np.abs(of - own) != 1)) or np.any(
        (own == MIDDLE) & ((of == FAR) | (of == BEYOND))
    ):
        raise Irregular
    fixed = storage.copy()
    to_last = (own == AFTER) & (of == MIDDLE)
    fixed[to_last] = table[-2][rank[storage[to_last]]]

    starts = np.flatnonzero(np.diff(own, prepend=own[0] - 1 if len(own) else 0))
    ends = np.append(starts[1:], len(own))
    pieces: list[tuple[Ints, Ints, Ints]] = []  # event of the executed run, storage, layer
    previous = NO_LAYER
    for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
        at = int(own[begin])
        index = np.arange(begin, end)
        if at == MIDDLE:
            order = np.arange(copies) if previous == BEFORE else np.arange(copies)[::-1]
            row = np.clip(order[:, None] + 1 + (of[begin:end] - MIDDLE)[None, :], 0, copies + 1)
            ids = np.where(
                neighbours[begin:end][None, :],
                table[row, np.minimum(rank[storage[begin:end]], ranks - 1)[None, :]],
                storage[begin:end][None, :],
            )
            pieces.append(
                (
                    np.tile(index, copies),
                    ids.ravel(),
                    (order[:, None] * period + events.layer[begin:end][None, :]).ravel(),
                )
            )
        else:
            pieces.append((index, fixed[begin:end], real_layer[events.layer[begin:end]]))
        if at != NO_LAYER:
            previous = at
    index, ids, layer_of = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    extra = np.tile(middle, copies - 1)
    owners = (np.arange(1, copies)[:, None] * period + events.owner[middle][None, :]).ravel()
    return Events(
        events.action[index],
        ids,
        events.phase[index],
        layer_of,
        events.operator[index],
        np.concatenate([events.bytes, events.bytes[extra]]),
        np.concatenate([events.category, events.category[extra]]),
        np.concatenate([real_layer[events.owner], owners]),
        events.phases,
        events.operators,
        events.work[index],
    )


def repeat_last_step(events: Events, steps: int) -> Events:
    """So many steps, from two executed ones: every later step is the second again, with storages of its own."""
    if steps <= 2:
        return events
    numbers = [int(name.split("/")[0]) if "/" in name else -1 for name in events.phases]
    step = np.array(numbers, np.int64)[events.phase]
    template = np.flatnonzero(step == 1)
    storage = events.storage[template]
    made = events.storage[template[events.action[template] == Action.ALLOC]]
    s, m = len(events.bytes), len(made)
    new = np.full(s, -1, np.int64)
    new[made] = np.arange(m)
    own = new[storage] >= 0
    phases = list(events.phases)
    parts = [(np.arange(len(step)), events.storage, events.phase)]
    ending = ["/" + name.split("/")[1] if "/" in name else "" for name in events.phases]
    for number in range(2, steps):
        to = np.zeros(len(events.phases), np.int64)
        for i, n in enumerate(numbers):
            if n == 1:
                to[i] = len(phases)
                phases.append(f"{number}{ending[i]}")
        ids = np.where(own, s + (number - 2) * m + new[storage], storage)
        parts.append((template, ids, to[events.phase[template]]))
    index, ids, phase = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    times = steps - 2
    sizes, category, owner = (
        np.concatenate([values, np.tile(values[made], times)])
        for values in (events.bytes, events.category, events.owner)
    )
    return Events(
        events.action[index],
        ids,
        phase,
        events.layer[index],
        events.operator[index],
        sizes,
        category,
        owner,
        tuple(phases),
        events.operators,
        events.work[index],
    )


def tape_of(events: Events) -> Tape:
    """The Tape of these events, on the default stream."""
    n = len(events.action)
    return Tape(
        action=events.action.astype(np.uint8),
        storage=events.storage,
        bytes=np.where(events.storage < 0, 0, events.bytes[events.storage]),
        stream=np.zeros(n, np.int64),
        phase=events.phase.astype(np.int32),
        operator=events.operator.astype(np.int32),
        layer=events.layer.astype(np.int32),
        category=np.where(events.storage < 0, int(Category.UNATTRIBUTED), events.category[events.storage]).astype(
            np.uint8
        )
        if n
        else np.zeros(0, np.uint8),
        phases=events.phases,
        operators=events.operators,
        work=events.work,
    )
