"""Graph → Tape: executes a few layers and steps, and repeats them as arrays."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from memsim.framework.model import Model
from memsim.machine.kernels import Platform
from memsim.machine.storages import Machine
from memsim.schedule.plan import Plan
from memsim.schedule.tile import Irregular, events_of, repeat_last_step, repeats_of, tape_of, tile_layers
from memsim.schedule.timing import optimizer_seconds, with_optimizer
from memsim.schedule.training import Training
from memsim.tape import Tape


def record(model: Model, plan: Plan, platform: Platform, *, whole: bool = False) -> Tape:
    """Returns the Tape of a training job: its load and `plan.steps` steps.

    With `whole`, every layer and step is executed instead of repeated. The result is the same.
    """
    kept, repeats = repeats_of(*alike_layers(model)) if not whole else ([], ())
    executed = model.only(kept) if repeats else model
    machine = Machine(platform)
    training = Training(executed, plan, machine, model)
    training.load()
    for step in range(plan.steps if whole else min(plan.steps, 2)):
        training.step(step)
    events = events_of(machine, plan.rates)
    if repeats:
        try:
            events = tile_layers(events, repeats)
        except Irregular:
            return record(model, plan, platform, whole=True)
    tape = tape_of(repeat_last_step(events, plan.steps) if not whole else events)
    if plan.rates is None:
        return replace(tape, work=None)
    trained = [(layer, p) for layer, p in model.in_order() if p.trainable and not p.buffer]
    seconds = optimizer_seconds(plan.optimizer.name, plan.clip_grad_norm is not None, trained, plan.rates)
    return replace(
        tape,
        work=with_optimizer(
            tape.work, tape.phase, tape.phases, seconds, "backward" if plan.in_backward else "optimizer"
        ),
    )


def alike_layers(model: Model) -> tuple[list[Hashable], list[bool]]:
    """Returns for each layer a key that tells its requests from another's, and whether it is the first of those
    checkpointed as one.
    """
    # Where kinds differ only in what they read, the first to read each input must be among the layers that are not
    # repeated, for that layer releases it.
    same = model.alike and set(model.pattern[:2]) == set(model.pattern)
    rows: list[Hashable] = []
    begins: list[bool] = []
    for kind, (checkpoint, at) in zip(model.pattern, model.by_layer(), strict=True):
        rows.append((0 if same else kind, checkpoint, at))
        begins.append(at == 0)
    # Layers at a tower's ends have other neighbours. In the last two, sums of gradients for all layers begin.
    if model.towers:
        ends = [
            (number, min(i - span.start, 1), min(span.stop - i, 3))
            for number, span in enumerate(model.spans())
            for i in span
        ]
        rows = list(zip(rows, ends, strict=True))
    return rows, begins
