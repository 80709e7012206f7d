"""Forward execution of a layer graph and autograd's backward over it (torch/csrc/autograd/engine.cpp, checkpoint.py).

Nodes run in the reverse of the order in which they were made, as the engine's priority queue has them on one device. A
leaf's AccumulateGrad runs as soon as its gradient is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.graph.layout import contiguous, is_laid_out
from memsim.machine.storages import BACKWARD, FORWARD, NO_LAYER, RECOMPUTED, Grad, Machine
from memsim.operators import KINDS
from memsim.schedule.autograd.nodes import Nodes, holds_tensors
from memsim.schedule.autograd.offload import from_host, laid_out, saved_for_nothing, saved_tensors, to_host
from memsim.schedule.autograd.regions import Frame, Instance, recompute, results_kept
from memsim.tape import AUTOCAST_CACHE, Category


@dataclass(eq=False, slots=True)
class Leaf:
    """A tensor whose gradient is kept: a trainable parameter, or an input that was marked as requiring one."""

    storage: int
    spec: TensorSpec
    expected: int = 0  # number of gradients still to come in this backward pass
    buffer: Grad | None = None
    grad: Grad | None = None


@dataclass(eq=False, slots=True)
class Reentrant:
    """A region of the reentrant kind (CheckpointFunction in torch/utils/checkpoint.py). Its forward ran without
    autograd.
    """

    graph: LayerGraph  # the graph as it runs again: with autograd, and with its hidden states as a leaf
    bound: dict[str, tuple[int, int]]  # (storage, value) of its inputs and parameters


@dataclass(eq=False, slots=True)
class Node:
    """The backward of an operator."""

    op: Operator
    instance: Instance
    saved: Sequence[int]  # storages, in the order of release
    frame: Frame | None
    hosted: tuple[TensorSpec, ...] = ()  # saved tensors that are on the host
    region: Reentrant | None = None  # the region that it runs again, as the backward of a reentrant checkpoint


@dataclass(eq=False)
class Autograd:
    """The nodes of one forward pass, and the leaves that its backward fills."""

    machine: Machine
    leaves: dict[int, Leaf] = field(default_factory=dict)  # by autograd value
    nodes: list[Node] = field(default_factory=list)
    holding: Nodes | None = None  # there where nodes of operators hold tensors until the graph goes
    attached: list[int] = field(default_factory=list)  # storages that nodes of reentrant checkpoints hold until then
    # runs after a leaf has its gradient (register_post_accumulate_grad_hook)
    hook: Callable[[Leaf], None] | None = None
    # leaves that the graph made, and the storages that their nodes hold
    made: list[tuple[Leaf, list[int]]] = field(default_factory=list)
    next_value: int = 0
    how: int = FORWARD  # the kind of work that executing an operator is, for the estimate of time

    def instance(self, graph: LayerGraph, bound: dict[str, tuple[int, int]], layer: int, prefix: str) -> Instance:
        """Returns a new execution of `graph` with its inputs and parameters bound to (storage, value)."""
        base = self.next_value
        self.next_value += graph.values
        storages = [-1] * len(graph.storage_bytes)
        values = list(range(base, base + graph.values))
        for group in (graph.inputs, graph.parameters):
            for name, spec in group.items():
                storages[spec.storage], values[spec.value] = bound[name]
        return Instance(graph, storages, values, layer, prefix)

    def execute(self, instance: Instance, op: Operator, frame: Frame | None = None, offload: bool = False) -> None:
        """Runs one operator forward, keeps what its backward needs, and releases the names that die after it."""
        machine, storages = self.machine, instance.storages
        hosted = saved_tensors(op) if offload and op.requires_grad else ()
        packed = (hosted or saved_for_nothing(op)) if offload else ()
        if packed:
            machine.at(instance.prefix + op.name)
            to_host(machine, op, packed, results=False)
        self.compute(instance, op)
        if packed:
            to_host(machine, op, packed, results=True)
        if frame is not None and op.kind in frame.saves:
            frame.cached[instance.layer, op.index] = kept = [storages[s] for s in results_kept(op)]
            for storage in kept:
                machine.retain(storage)
        if op.requires_grad:
            saved: Sequence[int] = ()
            if frame is None and not offload:
                saved = [storages[s] for s in op.saved]
                for storage in saved:
                    machine.retain(storage)
            elif frame is not None and op.saved:
                frame.pending += 1
            if self.holding:
                for storage in self.holding.add(op, instance.values, storages):
                    machine.retain(storage)
            self.nodes.append(Node(op, instance, saved, frame if op.saved else None, hosted))
            for spec in op.inputs:
                if spec.requires_grad:
                    leaf = self.leaves.get(instance.values[spec.value])
                    if leaf is not None:
                        leaf.expected += 1
        if op.kind == "new_leaf":
            self._make_leaf(instance, op)
        if (
            frame is not None
            or offload
            or (op.unkept and "dead" in op.attrs and not any(spec.requires_grad for spec in op.inputs))
        ):
            self._drop_unkept(instance, op)
            return
        for storage in op.drops:
            if storages[storage] >= 0:
                machine.release(storages[storage])

    def _make_leaf(self, instance: Instance, op: Operator) -> None:
        """Makes a leaf whose gradient only its AccumulateGrad holds."""
        (out,) = op.outputs
        value = instance.values[out.value]
        leaf = self.leaves[value] = Leaf(instance.storages[out.storage], out)
        if self.holding:
            self.made.append((leaf, self.holding.leaf(value)))

    def settle(self) -> None:
        """Adds, after backward, the gradients that AccumulateGrad holds of leaves made in the graph."""
        for leaf, held in self.made:
            if leaf.grad is not None:
                held.append(leaf.grad.storage)

    def _drop_unkept(self, instance: Instance, op: Operator) -> None:
        """Releases names in the first run of a checkpointed region, or where saved tensors are on the host, and tensors
        that a graph would hold elsewhere.
        """
        for storage in (*op.unkept, *op.drops):
            if instance.storages[storage] >= 0:
                self.machine.release(instance.storages[storage])
        for storage in op.unkept:
            instance.storages[storage] = -1

    def compute(self, instance: Instance, op: Operator) -> None:
        """Makes the requests of an operator's forward execution."""
        machine, storages = self.machine, instance.storages
        machine.at(instance.prefix + op.name)
        results: list[int] = []
        KINDS[op.kind].forward(machine, op.inputs, op.outputs, op.attrs, results)
        for spec, storage in zip(op.outputs, results, strict=True):
            if storage >= 0:
                storages[spec.storage] = storage
        machine.worked(op, self.how)

    def backward(self, roots: Iterable[tuple[int, Grad]]) -> None:
        """Runs loss.backward(): every node in reverse order. Fills the leaves' gradients."""
        machine = self.machine
        buffers: dict[int, Grad] = dict(roots)
        before = machine.default_category, machine.scratch_category, machine.backward_thread
        # This holds until the backward of the first layer.
        machine.default_category = machine.scratch_category = int(Category.LOGITS_AND_LOSS)
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
            kind = KINDS[op.kind]
            if kind.flattens:
                machine.at(node.instance.prefix + op.name + ".backward")
                kind.prepare(machine, grads)
            frame = node.frame
            if frame is not None and frame.saved is None:
                recompute(machine, frame)
            machine.at(node.instance.prefix + op.name + ".backward")
            back = [from_host(machine, op, spec) for spec in node.hosted]
            inputs, outputs = (laid_out(op, op.inputs), laid_out(op, op.outputs)) if back else (op.inputs, op.outputs)
            if node.region is not None:
                edges = self.run_again(node.region, node.instance, grads[0])
            else:
                edges = kind.backward(machine, inputs, outputs, op.attrs, grads)
                machine.worked(op, BACKWARD)
            # Kernels that make every gradient also make those that are not asked for. The results of a function in
            # Python are held until all are passed on.
            unasked = [grad for i, grad in edges if not op.inputs[i].requires_grad]
            in_python = kind.in_python(op.attrs)
            if not in_python:
                machine.discard(*unasked)
                unasked = []
            edges = [(i, grad) for i, grad in edges if op.inputs[i].requires_grad]
            unpacked = back
            if frame is not None:
                assert frame.saved is not None
                unpacked = frame.saved.pop((node.instance.layer, op.index))
            machine.release(*(unpacked if in_python else reversed(unpacked)))
            machine.leave()
            edges = [
                (i, machine.cast(machine.sum_to(grad, op.inputs[i].shape), op.inputs[i].dtype)) for i, grad in edges
            ]
            machine.discard(*grads)
            self._release_saved(node)
            ready = self._pass_on(node, edges, buffers)
            machine.discard(*unasked)
            for leaf in ready:
                self._arrive(leaf)
        machine.default_category, machine.scratch_category, machine.backward_thread = before

    def _release_saved(self, node: Node) -> None:
        """Releases what the node saved. A region is closed once the last such node in it is done."""
        if node.frame is None:
            self.machine.release(*node.saved)
            return
        node.frame.pending -= 1
        if node.frame.pending == 0:
            node.frame.close(self.machine)

    def _pass_on(self, node: Node, edges: list[tuple[int, Grad]], buffers: dict[int, Grad]) -> list[Leaf]:
        """Adds gradients to the buffers of the next nodes. Returns the leaves whose gradient is complete, except for
        those that take theirs at once.
        """
        inputs, values = node.op.inputs, node.instance.values
        ready: list[Leaf] = []
        at_once = KINDS[node.op.kind].one_by_one(inputs)
        for i, grad in edges:
            value = values[inputs[i].value]
            leaf = self.leaves.get(value)
            if leaf is None:
                buffers[value] = self._accumulate(buffers.get(value), grad)
                continue
            leaf.buffer = self._accumulate(leaf.buffer, grad)
            leaf.expected -= 1
            if leaf.expected == 0:
                if at_once:
                    self._arrive(leaf)
                else:
                    ready.append(leaf)
        return ready

    def checkpoint(self, instance: Instance, region: Reentrant, held: Sequence[int], saved: Sequence[int]) -> None:
        """Runs CheckpointFunction.apply: the layer ran without autograd, and one node runs it again. `held` are the
        arguments by name, which the node's function keeps until the graph goes; `saved` are the others.
        """
        machine, graph = self.machine, instance.graph
        for storage in reversed(held):
            machine.retain(storage)
            self.attached.append(storage)
        hidden, out = graph.inputs["hidden_states"], graph.outputs[0]
        for storage in saved:
            machine.retain(storage)
        op = Operator(0, "layers", "checkpoint", (hidden,), (replace(out, requires_grad=True),), {}, ())
        self.nodes.append(Node(op, instance, saved, None, region=region))
        leaf = self.leaves.get(instance.values[hidden.value])
        if leaf is not None:
            leaf.expected += 1

    def run_again(self, region: Reentrant, first: Instance, grad: Grad) -> list[tuple[int, Grad]]:
        """Runs CheckpointFunction.backward: the layer again, with autograd, then a backward pass of its own."""
        machine, graph = self.machine, region.graph
        category, machine.default_category = machine.default_category, int(Category.RECOMPUTATION)
        holding = Nodes(tensors=False) if holds_tensors(graph) else None
        inner = Autograd(
            machine, dict(self.leaves), holding=holding, hook=self.hook, next_value=self.next_value, how=RECOMPUTED
        )
        instance = inner.instance(graph, region.bound, first.layer, first.prefix)
        hidden, out = graph.inputs["hidden_states"], graph.outputs[0]
        leaf = Leaf(instance.storages[hidden.storage], hidden)
        value = inner.next_value
        inner.next_value += 1
        instance.values[hidden.value] = value
        inner.leaves[value] = leaf
        for op in graph.operators:
            inner.execute(instance, op)
        if graph.cached:
            machine.at(AUTOCAST_CACHE)
            machine.release(*(instance.storages[storage] for storage in graph.cached))
        machine.default_category = category
        inner.backward([(instance.values[out.value], machine.same(grad))])
        machine.at(first.prefix + "checkpoint.backward")
        inner.settle()
        before, after = holding.end(instance.values[out.value]) if holding else ([], [])
        machine.release(*before, instance.storages[out.storage], *after)
        assert leaf.grad is not None
        return [(0, leaf.grad)]

    def _accumulate(self, held: Grad | None, grad: Grad) -> Grad:
        """Runs InputBuffer::add: in place where nothing else can see the sum so far, into a new tensor otherwise."""
        machine = self.machine
        if held is None:
            return grad
        if not held.view and machine.references[held.storage] == 1:
            machine.release(grad.storage)
            return held
        total = machine.like(held)
        machine.release(held.storage, grad.storage)
        return total

    def _arrive(self, leaf: Leaf) -> None:
        """Runs AccumulateGrad, once every gradient of the leaf is there: it steals the gradient, adds it in place, or
        copies it.
        """
        machine = self.machine
        total, leaf.buffer = leaf.buffer, None
        assert total is not None
        held = total.storage  # AccumulateGrad's own reference lasts until the gradient has its place
        if leaf.grad is None:
            strides = leaf.spec.strides or contiguous(total.shape)  # like its leaf (utils/grad_layout_contract.h)
            obeys = is_laid_out(total.shape, total.strides, strides)
            if (machine.references[held] > 1 and not total.alone) or not obeys:
                total = machine.grad(total.shape, strides, total.dtype)
            else:
                machine.retain(held)
            leaf.grad = total
            machine.category[total.storage] = int(Category.GRADIENTS)
        machine.release(held)
        if self.hook is not None:
            self.hook(leaf)
