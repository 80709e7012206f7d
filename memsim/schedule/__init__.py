"""Graph → Tape: the order of load, forward, backward, recomputation, accumulation and optimizer."""

from __future__ import annotations

from dataclasses import replace

from memsim.models.model import Model
from memsim.schedule.machine import Machine
from memsim.schedule.stack import Stack
from memsim.schedule.tile import EXECUTED, MIDDLE, Irregular, events_of, repeat_last_step, tape_of, tile_layers
from memsim.schedule.timing import optimizer_seconds, with_optimizer
from memsim.schedule.training import Plan, Training
from memsim.tape import Tape


def record(model: Model, plan: Plan, stack: Stack, *, whole: bool = False) -> Tape:
    """The Tape of a training job: its load and `plan.steps` steps.

    With `whole`, every layer and step is executed instead of repeated; the result is the same.
    """
    layers = len(model.pattern)
    kinds = set(model.pattern)
    # Where kinds differ only in what they read, the first to read each thing must be among the layers that are not repeated: there it is let go of.
    repeated = len(set(model.pattern[1:-1])) == 1  # the first and the last may be of other kinds
    tiled = not whole and layers > EXECUTED and (repeated or (model.alike and set(model.pattern[:MIDDLE]) == kinds))
    executed = replace(model, pattern=(*model.pattern[: MIDDLE + 1], *model.pattern[-2:])) if tiled else model
    machine = Machine(stack)
    training = Training(executed, plan, machine, model)
    training.load()
    for step in range(plan.steps if whole else min(plan.steps, 2)):
        training.step(step)
    events = events_of(machine, plan.rates)
    if tiled:
        try:
            events = tile_layers(events, layers)
        except Irregular:
            return record(model, plan, stack, whole=True)
    tape = tape_of(repeat_last_step(events, plan.steps) if not whole else events)
    if plan.rates is None:
        return replace(tape, work=None)
    trained = [(layer, p) for layer, p in model.in_order() if p.trainable and not p.buffer]
    seconds = optimizer_seconds(plan.optimizer.name, plan.clip_grad_norm is not None, trained, plan.rates)
    return replace(tape, work=with_optimizer(tape.work, tape.phase, tape.phases, seconds, "backward" if plan.in_backward else "optimizer"))
