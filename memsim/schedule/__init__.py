"""Graph → Tape: the order of load, forward, backward, recomputation, accumulation and optimizer."""

from __future__ import annotations

from dataclasses import replace

from memsim.models.model import Model
from memsim.schedule.machine import Machine
from memsim.schedule.stack import Stack
from memsim.schedule.tile import EXECUTED, Irregular, events_of, repeat_last_step, tape_of, tile_layers
from memsim.schedule.training import Plan, Training
from memsim.tape import Tape


def record(model: Model, plan: Plan, stack: Stack, *, whole: bool = False) -> Tape:
    """The Tape of a training job: its load and `plan.steps` steps.

    With `whole`, every layer and step is executed instead of repeated; the result is the same.
    """
    layers = len(model.pattern)
    tiled = not whole and layers > EXECUTED and len(set(model.pattern)) == 1
    executed = replace(model, pattern=model.pattern[:EXECUTED]) if tiled else model
    machine = Machine(stack)
    training = Training(executed, plan, machine, model)
    training.load()
    for step in range(plan.steps if whole else min(plan.steps, 2)):
        training.step(step)
    events = events_of(machine)
    if tiled:
        try:
            events = tile_layers(events, layers)
        except Irregular:
            return record(model, plan, stack, whole=True)
    return tape_of(repeat_last_step(events, plan.steps) if not whole else events)
