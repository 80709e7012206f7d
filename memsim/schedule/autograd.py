"""Forward execution of a layer graph and autograd's backward over it (torch/csrc/autograd/engine.cpp, checkpoint.py).

Nodes run in the reverse of the order in which they were made, which is what the engine's priority queue comes to on one device; a leaf's
AccumulateGrad runs as soon as its gradient is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memsim.graph import LayerGraph, Operator, TensorSpec, contiguous
from memsim.operators import KINDS
from memsim.schedule.machine import BACKWARD, FORWARD, NO_LAYER, RECOMPUTED, Grad, Machine
from memsim.tape import AUTOCAST_CACHE, Category


@dataclass(eq=False, slots=True)
class Leaf:
    """A tensor whose gradient is kept: a trainable parameter, or an input that was told to require one."""

    storage: int
    spec: TensorSpec
    expected: int = 0  # gradients still to come in this backward pass
    buffer: Grad | None = None
    grad: Grad | None = None


@dataclass(eq=False, slots=True)
class Instance:
    """One execution of a layer graph: which storage and which autograd value each of its tensors is."""

    graph: LayerGraph
    storages: list[int]  # by the graph's storage number
    values: list[int]  # by the graph's value number
    layer: int
    prefix: str


@dataclass(eq=False, slots=True)
class Frame:
    """A checkpointed region (torch.utils.checkpoint's _CheckpointFrame): what it must hold to run again, and what running it again kept."""

    instance: Instance
    held: tuple[int, ...]  # storages of arguments, in the order in which they are let go
    pending: int = 0  # nodes whose saved tensors are still hooked to it
    saved: dict[int, list[int]] | None = None  # operator index → storages, once recomputed


@dataclass(eq=False, slots=True)
class Node:
    """An operator's backward."""

    op: Operator
    instance: Instance
    saved: Sequence[int]  # storages, in the order of release
    frame: Frame | None


def is_contiguous(grad: Grad) -> bool:
    """Whether it is laid out as its leaf is (torch/csrc/autograd/utils/grad_layout_contract.h): leaves are contiguous."""
    return all(size == 1 or have == want for size, have, want in zip(grad.shape, grad.strides, contiguous(grad.shape), strict=True))


@dataclass(eq=False)
class Autograd:
    """The nodes of one forward pass, and the leaves that its backward fills."""

    machine: Machine
    leaves: dict[int, Leaf] = field(default_factory=dict)  # by autograd value
    nodes: list[Node] = field(default_factory=list)
    attached: list[int] = field(default_factory=list)  # storages that nodes hold until the graph goes
    next_value: int = 0
    recomputing: bool = False

    def instance(self, graph: LayerGraph, bound: dict[str, tuple[int, int]], layer: int, prefix: str) -> Instance:
        """A fresh execution of `graph` with its inputs and parameters bound to (storage, value)."""
        base = self.next_value
        self.next_value += graph.values
        storages = [-1] * len(graph.storage_bytes)
        values = list(range(base, base + graph.values))
        for group in (graph.inputs, graph.parameters):
            for name, spec in group.items():
                storages[spec.storage], values[spec.value] = bound[name]
        return Instance(graph, storages, values, layer, prefix)

    def execute(self, instance: Instance, op: Operator, frame: Frame | None = None) -> None:
        """Runs one operator forward, keeps what its backward needs, and lets go of the names that die after it."""
        self.compute(instance, op)
        machine, storages = self.machine, instance.storages
        if op.requires_grad:
            saved: Sequence[int] = ()
            if frame is None:
                saved = [storages[s] for s in op.saved]
                for storage in saved:
                    machine.retain(storage)
            elif op.saved:
                frame.pending += 1
            for s in KINDS[op.kind].attached(op.inputs, op.attrs):
                machine.retain(storages[s])
                self.attached.append(storages[s])
            self.nodes.append(Node(op, instance, saved, frame if op.saved else None))
            for spec in op.inputs:
                if spec.requires_grad:
                    leaf = self.leaves.get(instance.values[spec.value])
                    if leaf is not None:
                        leaf.expected += 1
        if frame is not None:
            self._drop_in_checkpoint(instance, op)
            return
        for storage in op.drops:
            machine.release(storages[storage])

    def _drop_in_checkpoint(self, instance: Instance, op: Operator) -> None:
        """Lets go of names in a checkpointed region's first run, and of what elsewhere a graph would hold."""
        for storage in (*op.unkept, *op.drops):
            if instance.storages[storage] >= 0:
                self.machine.release(instance.storages[storage])
        for storage in op.unkept:
            instance.storages[storage] = -1

    def compute(self, instance: Instance, op: Operator) -> None:
        """The requests of an operator's forward execution."""
        machine, storages = self.machine, instance.storages
        machine.at(instance.prefix + op.name)
        results: list[int] = []
        KINDS[op.kind].forward(machine, op.inputs, op.outputs, op.attrs, results)
        for spec, storage in zip(op.outputs, results, strict=True):
            if storage >= 0:
                storages[spec.storage] = storage
        machine.worked(op, RECOMPUTED if self.recomputing else FORWARD)

    def recompute(self, frame: Frame) -> None:
        """Runs a checkpointed region again up to its last saved tensor, where torch.utils.checkpoint stops early by an exception."""
        machine, first = self.machine, frame.instance
        graph = first.graph
        category, machine.default_category, self.recomputing = machine.default_category, int(Category.RECOMPUTATION), True
        storages = [-1] * len(graph.storage_bytes)
        for group in (graph.inputs, graph.parameters):
            for spec in group.values():
                storages[spec.storage] = first.storages[spec.storage]
        again = Instance(graph, storages, first.values, first.layer, first.prefix)
        frame.saved = {}
        last = max(op.index for op in graph.operators if op.saved)
        alive: dict[int, None] = {}
        for op in graph.operators[: last + 1]:
            before_compute = op.index == last and not any(out.storage in op.saved for out in op.outputs)
            if not before_compute:
                self.compute(again, op)
                for out in op.outputs:
                    if not any(out.storage == read.storage for read in op.inputs):
                        alive[out.storage] = None
            if op.saved:
                frame.saved[op.index] = [storages[s] for s in op.saved]
                for s in op.saved:
                    machine.retain(storages[s])
            if op.index == last:
                break
            for s in op.drops:
                machine.release(storages[s])
                alive.pop(s, None)
        # The exception unwinds. The results of the operator that it left go first.
        for out in graph.operators[last].outputs:
            if out.storage in alive:
                machine.release(storages[out.storage])
                del alive[out.storage]
        if graph.cached:  # the exception ends the contexts, autocast's too, and only then do the frames that it passed die
            machine.at(AUTOCAST_CACHE)
            for s in graph.cached:
                if s in alive:
                    machine.release(storages[s])
                    del alive[s]
            machine.at(first.prefix + graph.operators[last].name)
        # Then the locals of inner functions, in the order of their slots where that is known, else as on return.
        unwind: tuple[int, ...] = graph.operators[last].attrs.get("unwind", ())  # type: ignore[assignment]
        for s in (*unwind, *(s for op in graph.operators[last:] for s in op.drops)):
            if s in alive:
                machine.release(storages[s])
                del alive[s]
        for s in alive:
            machine.release(storages[s])
        machine.default_category, self.recomputing = category, False

    def backward(self, roots: Iterable[tuple[int, Grad]]) -> None:
        """loss.backward(): every node in reverse order; fills the leaves' gradients."""
        machine = self.machine
        buffers: dict[int, Grad] = dict(roots)
        before = machine.default_category, machine.scratch_category
        machine.default_category = machine.scratch_category = int(Category.LOGITS_AND_LOSS)  # until the first layer's backward
        machine.backward_thread = True
        while self.nodes:
            node = self.nodes.pop()
            op, values = node.op, node.instance.values
            wanted = [out for out in op.outputs if out.requires_grad]
            grads = [buffers.pop(values[out.value]) for out in wanted if values[out.value] in buffers]
            if not grads:
                machine.release(*node.saved)
                continue
            machine.layer = node.instance.layer
            if machine.layer != NO_LAYER:
                machine.default_category = machine.scratch_category = int(Category.SCRATCH)
            frame = node.frame
            if frame is not None and frame.saved is None:
                self.recompute(frame)
            machine.at(node.instance.prefix + op.name + ".backward")
            edges = KINDS[op.kind].backward(machine, op.inputs, op.outputs, op.attrs, grads)
            machine.worked(op, BACKWARD)
            for i, grad in edges:  # kernels that make every gradient make those that nobody asked for, too
                if not op.inputs[i].requires_grad:
                    machine.release(grad.storage)
            edges = [(i, grad) for i, grad in edges if op.inputs[i].requires_grad]
            if frame is not None:
                assert frame.saved is not None
                unpacked = frame.saved.pop(op.index)
                machine.release(*(unpacked if KINDS[op.kind].in_python(op.attrs) else reversed(unpacked)))
            edges = [(i, machine.cast(machine.sum_to(grad, op.inputs[i].shape), op.inputs[i].dtype)) for i, grad in edges]
            machine.discard(*grads)
            if frame is None:
                machine.release(*node.saved)
            else:
                frame.pending -= 1
                if frame.pending == 0:
                    machine.release(*frame.held)
            for i, grad in edges:
                value = values[op.inputs[i].value]
                leaf = self.leaves.get(value)
                if leaf is not None:
                    self._arrive(leaf, grad)
                else:
                    buffers[value] = self._accumulate(buffers.get(value), grad)
        machine.default_category, machine.scratch_category = before
        machine.backward_thread = False

    def _accumulate(self, held: Grad | None, grad: Grad) -> Grad:
        """InputBuffer::add: in place where nobody else can see the sum so far, into a new tensor otherwise."""
        machine = self.machine
        if held is None:
            return grad
        if not held.view and machine.references[held.storage] == 1:
            machine.release(grad.storage)
            return held
        total = machine.like(held)
        machine.release(held.storage, grad.storage)
        return total

    def _arrive(self, leaf: Leaf, grad: Grad) -> None:
        """AccumulateGrad, once every gradient of the leaf is there: steal it, add it in place, or copy it."""
        machine = self.machine
        leaf.buffer = self._accumulate(leaf.buffer, grad)
        leaf.expected -= 1
        if leaf.expected:
            return
        total, leaf.buffer = leaf.buffer, None
        if leaf.grad is not None:
            machine.release(total.storage)
        else:
            if machine.references[total.storage] > 1 or not is_contiguous(total):
                copy = machine.grad(total.shape, contiguous(total.shape), total.dtype)
                machine.release(total.storage)
                total = copy
            leaf.grad = total
            machine.category[total.storage] = int(Category.GRADIENTS)
