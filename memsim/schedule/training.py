"""Training steps: load, then forward, backward and optimizer, for a model small enough to execute operator by operator
in Python.

`record` executes a few layers only. `tile` repeats the middle one (schedule/tile.py), so that an 80-layer model costs
what five layers cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memsim.graph.layer_graph import Operator
from memsim.machine.storages import NO_LAYER
from memsim.schedule.autograd.endings import at_end, end_of_leaves
from memsim.schedule.autograd.engine import Autograd, Leaf
from memsim.schedule.autograd.nodes import Nodes, holds_tensors
from memsim.schedule.autograd.regions import Instance
from memsim.schedule.forward import Forward
from memsim.schedule.grad_scaler import GradScaler
from memsim.schedule.optimizers.torch_optim import FUSED
from memsim.tape import Category


@dataclass(eq=False)
class Training(Forward):
    """A training process: a loaded model, and what its steps have accumulated."""

    ran: bool = False  # the model has run, so tensors that it makes when it first runs are there
    # the order in which the graph releases those tensors: before the loss itself goes, and after
    ending: tuple[list[int], list[int]] | None = None
    scaler: GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.machine, self.plan.grad_scaler)

    def step(self, number: int) -> None:
        """Runs one training step."""
        machine = self.machine
        for _ in range(self.plan.accumulation):
            machine.enter(f"{number}/forward")
            self.micro_batch(number)
        machine.enter(f"{number}/optimizer")
        machine.layer = NO_LAYER
        if self.plan.in_backward:
            return
        if self.plan.clip_grad_norm:
            self.scaler.unscale()
            self.plan.optimizer.clip(
                machine, self.order, [p for _, p in self.whole.in_order() if p.trainable and not p.buffer]
            )
        with self.scaler.step(fused=self.plan.optimizer.name in FUSED):
            self.plan.optimizer.step(machine, self.order, self.state)
        self.plan.optimizer.zero_grad(machine, self.order)

    def step_one(self, leaf: Leaf) -> None:
        """Runs the hook of a parameter's own optimizer: step(), zero_grad()."""
        row = self.row_of.get(leaf)
        if row is None:  # the embedded tokens, which a checkpoint marked as requiring a gradient
            return
        machine, optimizer = self.machine, self.plan.optimizer
        layer = machine.layer
        optimizer.step(machine, [row], self.states.setdefault(leaf.storage, {}))
        optimizer.zero_grad(machine, [row])
        machine.layer = layer
        machine.at("AccumulateGrad")

    def micro_batch(self, number: int) -> None:
        """Runs one micro-batch: the batch, forward with labels, backward, and the releases of the training loop."""
        machine = self.machine
        machine.layer = NO_LAYER
        machine.at("tokens")
        given = {name: machine.alloc(nbytes, int(Category.INPUTS)) for name, nbytes in self.model.batch_bytes().items()}
        autograd, instance = self.forward(given)
        machine.enter(f"{number}/backward")
        self.backward(autograd, instance)
        self.end(autograd, instance, list(given.values()))

    def forward(self, given: dict[str, int]) -> tuple[Autograd, Instance]:
        """Runs the model's forward with labels. `given` are the storages of the batch by name."""
        machine = self.machine
        self.begin_autocast()
        # the graphs of reentrant checkpoints are not part of this one
        reentrant = bool(self.model.checkpoints) and all(c.how == "reentrant" for c in self.model.checkpoints)
        holding = Nodes(tensors=False) if not reentrant and any(map(holds_tensors, self.model.layer_graphs)) else None
        autograd = Autograd(
            machine, dict(self.leaves), holding=holding, hook=self.step_one if self.plan.in_backward else None
        )
        outer = self.model.outer
        bound = {name: (given[name], -(10**9) - i) for i, name in enumerate(outer.inputs)}
        bound |= {name: self.parameters[-1, name] for name in outer.parameters}
        instance = autograd.instance(outer, bound, NO_LAYER, "")
        head = False
        self.told.clear()
        self.kept_casts.clear()
        for op in outer.operators:
            if op.kind == "layers":
                machine.default_category = int(Category.ACTIVATIONS)
                self.run_layers(autograd, instance.storages, instance.values, op)
                head = True
            elif op.kind == "recast":
                self.recast_once(NO_LAYER, instance, op)
            elif self.ran and op.attrs.get("once"):
                continue
            else:
                machine.default_category = int(category_of(op, head))
                autograd.execute(instance, op)
                if op.outputs and op.outputs[0].leaf:
                    self.tell(autograd, instance, op.outputs[0])
        self.ran = True
        machine.default_category = int(Category.ACTIVATIONS)
        self.end_autocast(instance)
        return autograd, instance

    def backward(self, autograd: Autograd, instance: Instance) -> None:
        """Runs loss.backward(), of the scaled loss where there is a scaler."""
        machine = self.machine
        loss = self.model.outer.outputs[0]
        machine.at("loss.backward")
        machine.scratch_category = int(Category.LOGITS_AND_LOSS)
        scaled = self.scaler.scale(loss)
        one = machine.grad(loss.shape, loss.strides, loss.dtype)
        of_loss = machine.same(one) if scaled is None else machine.like(one)
        machine.scratch_category = int(Category.SCRATCH)
        autograd.backward([(instance.values[loss.value], of_loss)])
        machine.layer = NO_LAYER
        machine.at("loss.backward")
        machine.release(one.storage, *(() if scaled is None else (scaled,)))

    def end(self, autograd: Autograd, instance: Instance, batch: list[int]) -> None:
        """Releases what the training loop held: the loss, the graph with it, and the batch's storages, tokens first."""
        machine = self.machine
        loss = self.model.outer.outputs[0]
        machine.at("del loss, tokens")
        kept = [[*([leaf.grad.storage] if leaf.grad else []), leaf.storage] for leaf, _ in self.told]
        if autograd.holding:
            for (_, held), own in zip(self.told, kept, strict=True):
                held += own
            autograd.settle()
            before, after = autograd.holding.end(instance.values[loss.value])
        elif len(kept) > 1:
            self.ending = self.ending or end_of_leaves(self.whole, self.layer_graph)
            before, after = ([storage for i in part for storage in kept[i]] for part in self.ending)
        else:
            before, after = at_end(self.whole, [storage for own in kept for storage in own], autograd.attached)
        tokens, *others = batch
        machine.release(*before, instance.storages[loss.storage], *after, tokens, *reversed(others))


def category_of(op: Operator, head: bool) -> Category:
    """Returns the category of the results of an operator outside the layers. `head` is true after the layers."""
    if op.attrs.get("no_grad") or op.kind == "create":
        return Category.INPUTS
    return Category.LOGITS_AND_LOSS if head else Category.ACTIVATIONS
