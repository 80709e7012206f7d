"""From a few executed layers and steps to the whole Tape: the middle layer and the last step are repeated as arrays.

Five layers are executed. Layer 2 has ordinary neighbours on both sides, so its events stand for those of layers 2 … L-3; layers 0, 1 and the
last two keep theirs. A storage is known by the layer that allocated it and its rank among that layer's storages, which is how an event of one
layer finds its neighbour's storage in every copy. Where the executed layers do not repeat (`Irregular`), all layers are executed instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.cost import Rates
from memsim.schedule.machine import NO_LAYER, Machine
from memsim.schedule.timing import Columns, work_of
from memsim.tape import Action, Category, Tape

EXECUTED = 5  # layers, where there are more
MIDDLE = 2
Ints = NDArray[np.int64]


class Irregular(Exception):
    """The executed layers are not repetitions of each other."""


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
    return Events(action, storage, phase, layer, operator, sizes, category, owner, tuple(machine.phases), tuple(names), work_of(machine, rates))


def tile_layers(events: Events, layers: int) -> Events:
    """The events of a model with so many layers, from one with EXECUTED. Raises Irregular."""
    if layers <= EXECUTED:
        return events
    last = EXECUTED - 1
    owner, s = events.owner, len(events.bytes)
    rank = np.zeros(s, np.int64)
    members = [np.flatnonzero(owner == layer) for layer in range(EXECUTED)]
    for ids in members:
        rank[ids] = np.arange(len(ids))
    before, middle, after = members[MIDDLE - 1 : MIDDLE + 2]
    if not all(len(ids) == len(middle) and (events.bytes[ids] == events.bytes[middle]).all() for ids in (before, after)):
        raise Irregular
    copies = layers - EXECUTED + 1  # layers 2 … layers-3
    ranks = len(middle)
    table = np.empty((copies + 2, ranks), np.int64)  # the storage of each rank, for layers 1 … layers-2
    table[0], table[-1] = before, after
    table[1] = middle  # the first copy keeps the executed numbers
    table[2:-1] = s + np.arange((copies - 1) * ranks).reshape(copies - 1, ranks)

    real_layer = np.array([*range(MIDDLE + 1), layers - 2, layers - 1, NO_LAYER])  # -1 finds the last entry
    storage = events.storage
    of = np.where(storage < 0, NO_LAYER, owner[storage])
    neighbours = (of >= MIDDLE - 1) & (of <= MIDDLE + 1)
    own = events.layer
    if np.any(neighbours & (of != own) & (np.abs(of - own) != 1)) or np.any((own == MIDDLE) & ((of == 0) | (of == last))):
        raise Irregular
    fixed = storage.copy()
    to_last = (own == MIDDLE + 1) & (of == MIDDLE)  # layer L-2 speaks of layer L-3
    fixed[to_last] = table[-2][rank[storage[to_last]]]

    starts = np.flatnonzero(np.diff(own, prepend=own[0] - 1 if len(own) else 0))
    ends = np.append(starts[1:], len(own))
    pieces: list[tuple[Ints, Ints, Ints]] = []  # event of the executed run, storage, layer
    previous = NO_LAYER
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        layer = int(own[start])
        index = np.arange(start, end)
        if layer == MIDDLE:
            order = np.arange(copies) if previous == MIDDLE - 1 else np.arange(copies)[::-1]
            at = neighbours[start:end]
            row = np.clip(order[:, None] + 1 + (of[start:end] - MIDDLE)[None, :], 0, copies + 1)
            ids = np.where(at[None, :], table[row, np.minimum(rank[storage[start:end]], ranks - 1)[None, :]], storage[start:end][None, :])
            pieces.append((np.tile(index, copies), ids.ravel(), np.repeat(order + MIDDLE, end - start)))
        else:
            pieces.append((index, fixed[start:end], np.full(end - start, real_layer[layer])))
        if layer != NO_LAYER:
            previous = layer
    index, ids, layer_of = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    extra = np.tile(middle, copies - 1)
    return Events(
        events.action[index],
        ids,
        events.phase[index],
        layer_of,
        events.operator[index],
        np.concatenate([events.bytes, events.bytes[extra]]) if copies > 1 else events.bytes,
        np.concatenate([events.category, events.category[extra]]) if copies > 1 else events.category,
        np.concatenate([real_layer[owner], np.repeat(np.arange(MIDDLE + 1, layers - 2), ranks)]) if copies > 1 else real_layer[owner],
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
    sizes, category, owner = (np.concatenate([values, np.tile(values[made], times)]) for values in (events.bytes, events.category, events.owner))
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
        category=np.where(events.storage < 0, int(Category.UNATTRIBUTED), events.category[events.storage]).astype(np.uint8) if n else np.zeros(0, np.uint8),
        phases=events.phases,
        operators=events.operators,
        work=events.work,
    )
