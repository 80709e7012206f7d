"""Makes the whole Tape from a few executed layers and steps: repeated layers and the last step are copied as arrays.

Where layers repeat, singly or in periods of several, three repetitions are executed. The one in the middle has ordinary
neighbours on both sides, so its events stand for all but the first and the last. A storage is known by the repetition
that allocated it and its rank among the storages of that repetition. So an event of one repetition finds its
neighbour's storage in every copy. Where the executed layers do not repeat (`Irregular`), all layers are executed
instead.
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

LEAST = 4  # fewest repetitions that are worth it
Ints = NDArray[np.int64]


class Irregular(Exception):
    """The executed layers are not repetitions of each other."""


@dataclass(frozen=True)
class Repeat:
    """A run of executed layers that stands for several: `period` layers from `start` on, repeated `copies` times."""

    start: int
    period: int
    copies: int


def repeats_of(layers: Sequence[Hashable], begins: Sequence[bool]) -> tuple[list[int], tuple[Repeat, ...]]:
    """Returns the layers to execute, and those of them that repeat. Layers that are equal are alike. The first layer
    and the last are never repeated.

    begins: true for a layer that is the first of those checkpointed as one, which are never divided.
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
    """Returns the shortest period that repeats often enough from a layer on, and the number of its repetitions."""
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
    """The events of a machine as arrays: n events, s storages."""

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
    """Returns the machine's lists as arrays, with times where there are rates."""
    n = len(machine.actions)
    names: dict[str, int] = {}
    at, phases, layers, operators = zip(*machine.marks, strict=True) if machine.marks else ((), (), (), ())
    codes = [names.setdefault(name, len(names)) for name in operators]
    edges: Ints = np.array([*at, n], np.int64)
    counts = edges[1:] - edges[:-1]
    phase, layer, operator = (np.repeat(np.array(column, np.int64), counts) for column in (phases, layers, codes))
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


FAR, BEFORE, MIDDLE, AFTER, BEYOND = range(5)  # place of a layer, as seen from the repeated ones


def tile_layers(events: Events, repeats: Sequence[Repeat]) -> Events:
    """Returns the events of the whole model, from those of one that executes each repetition three times. Raises
    Irregular.
    """
    for repeat in reversed(repeats):
        events = _tile(events, repeat)
    return events


@dataclass(frozen=True)
class _Tiling:
    """The tables from which three executed repetitions become all the copies: n events, s storages, r storages in a
    repetition.
    """

    repeat: Repeat
    own: Ints  # [n] the place of each event's layer
    of: Ints  # [n] place of the layer that made the event's storage; NO_LAYER where it is outside of all
    neighbours: NDArray[np.bool_]  # [n] true if that place is one of the three repetitions
    rank: Ints  # [s] rank among the storages of its repetition
    table: Ints  # [copies + 2, r] storage of each rank: in the repetition before, in each copy, in the one after

    @property
    def middle(self) -> Ints:
        """[r] Storages of the repetition that is copied."""
        middle: Ints = self.table[1]
        return middle


def _tile(events: Events, repeat: Repeat) -> Events:
    tiling = _tiling(events, repeat)
    period, copies = repeat.period, repeat.copies
    layers = _layers(events)
    real_layer = np.arange(layers + 1)
    real_layer[repeat.start + period :] += (copies - 1) * period
    real_layer[-1] = NO_LAYER
    index, storage, layer = _copied(events, tiling, real_layer)
    extra = np.tile(tiling.middle, copies - 1)
    owners = (np.arange(1, copies)[:, None] * period + events.owner[tiling.middle][None, :]).ravel()
    return Events(
        events.action[index],
        storage,
        events.phase[index],
        layer,
        events.operator[index],
        np.concatenate([events.bytes, events.bytes[extra]]),
        np.concatenate([events.category, events.category[extra]]),
        np.concatenate([real_layer[events.owner], owners]),
        events.phases,
        events.operators,
        events.work[index],
    )


def _layers(events: Events) -> int:
    """Returns the number of layers that were executed."""
    return int(max(events.owner.max(initial=0), events.layer.max(initial=0))) + 1


def _tiling(events: Events, repeat: Repeat) -> _Tiling:
    """Computes the tables. Raises Irregular where the repetitions are not alike, or where the middle one reaches beyond
    its neighbours.
    """
    start, period, copies = repeat.start, repeat.period, repeat.copies
    place = np.full(_layers(events) + 1, FAR)
    place[start - period : start], place[start : start + period] = BEFORE, MIDDLE
    place[start + period : start + 2 * period], place[start + 2 * period :] = AFTER, BEYOND
    place[-1] = NO_LAYER  # place of events whose layer is -1
    owner, s = place[events.owner], len(events.bytes)
    rank = np.zeros(s, np.int64)
    before, middle, after = (np.flatnonzero(owner == at) for at in (BEFORE, MIDDLE, AFTER))
    for ids in (before, middle, after):
        if len(ids) != len(middle) or (events.bytes[ids] != events.bytes[middle]).any():
            raise Irregular
        rank[ids] = np.arange(len(ids))
    table = np.empty((copies + 2, len(middle)), np.int64)
    table[0], table[-1] = before, after
    table[1] = middle  # the first copy keeps the executed numbers
    table[2:-1] = s + np.arange((copies - 1) * len(middle)).reshape(copies - 1, len(middle))
    of = np.where(events.storage < 0, NO_LAYER, owner[events.storage])
    own = place[events.layer]
    neighbours = (of >= BEFORE) & (of <= AFTER)
    far = neighbours & (of != own) & (np.abs(of - own) != 1)
    if far.any() or ((own == MIDDLE) & ((of == FAR) | (of == BEYOND))).any():
        raise Irregular
    return _Tiling(repeat, own, of, neighbours, rank, table)


def _copied(events: Events, t: _Tiling, real_layer: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns for each event of the whole model the executed event, its storage and its layer."""
    storage, copies = events.storage, t.repeat.copies
    fixed = storage.copy()
    to_last = (t.own == AFTER) & (t.of == MIDDLE)
    fixed[to_last] = t.table[-2][t.rank[storage[to_last]]]
    starts = np.flatnonzero(np.diff(t.own, prepend=t.own[0] - 1 if len(t.own) else 0))
    ends = np.append(starts[1:], len(t.own))
    pieces: list[tuple[Ints, Ints, Ints]] = []
    previous = NO_LAYER
    for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
        at, index, mine = int(t.own[begin]), np.arange(begin, end), storage[begin:end]
        if at == MIDDLE:
            order = np.arange(copies) if previous == BEFORE else np.arange(copies)[::-1]
            row = np.clip(order[:, None] + 1 + (t.of[begin:end] - MIDDLE)[None, :], 0, copies + 1)
            column = np.minimum(t.rank[mine], len(t.middle) - 1)
            ids = np.where(t.neighbours[begin:end][None, :], t.table[row, column[None, :]], mine[None, :])
            layer = order[:, None] * t.repeat.period + events.layer[begin:end][None, :]
            pieces.append((np.tile(index, copies), ids.ravel(), layer.ravel()))
        else:
            pieces.append((index, fixed[begin:end], real_layer[events.layer[begin:end]]))
        if at != NO_LAYER:
            previous = at
    index, ids, layers = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return index, ids, layers


def repeat_last_step(events: Events, steps: int) -> Events:
    """Makes `steps` steps from two executed ones. Every later step is the second again, with storages of its own."""
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
    """Returns the Tape of these events, on the default stream."""
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
