"""Training steps: load, then forward, backward and optimizer, for a model small enough to execute operator by operator in Python.

`record` executes a few layers only; `tile` repeats the middle one (schedule/tile.py), so that an 80-layer model costs what five layers cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from memsim.builder import rewrite
from memsim.cost import Rates
from memsim.dtypes import ITEMSIZE
from memsim.graph import LayerGraph, Operator, TensorSpec
from memsim.models.model import Model, Parameter
from memsim.operators.linear4bit import quantize
from memsim.schedule.autograd import Autograd, Frame, Instance, Leaf
from memsim.schedule.machine import NO_LAYER, Machine
from memsim.schedule.optimizers import Optimizer
from memsim.tape import AUTOCAST_CACHE, Category

LAYER_INPUTS = ("hidden_states", "cos", "sin", "position_ids", "attention_mask")  # of a layer, where the graph does not name them
NESTED = 49  # deallocations within each other; beyond, CPython's trashcan takes them (Include/cpython/object.h, PyTrash_UNWIND_LEVEL)
CREATED = {"parameter adapter": 1, "copy": 2}  # the turn at which PEFT makes adapters: of modules, of parameters, then copies of modules
PYTHON_FUNCTIONS = ("linear4bit",)


@dataclass(frozen=True)
class Plan:
    """What of a Run decides the schedule."""

    steps: int
    accumulation: int
    clip_grad_norm: float | None
    optimizer: Optimizer
    rates: Rates | None = None  # what estimates the time


@dataclass(eq=False)
class Training:
    """A training process: the machine, the loaded parameters, and what they have accumulated."""

    model: Model
    plan: Plan
    machine: Machine
    whole: Model  # with all its layers, where `model` has a few of them
    parameters: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)  # (layer, name) → (storage, autograd value)
    leaves: dict[int, Leaf] = field(default_factory=dict)  # by autograd value
    order: list[tuple[int, Parameter, Leaf]] = field(default_factory=list)  # trainable, as model.parameters() gives them
    state: dict[int, list[int]] = field(default_factory=dict)  # optimizer state by parameter storage
    graphs: dict[tuple[int, bool, bool], LayerGraph] = field(default_factory=dict)
    asked: bool = False  # autocast has asked whether the device has bfloat16
    quantized: bool = False  # a weight was, so the map for scales is there
    recasts: set[tuple[int, str]] = field(default_factory=set)  # parameters that their modules have cast for good
    casts: list[Instance] = field(default_factory=list)  # of the layers in this forward pass

    def load(self) -> None:
        """Moves the model to the device a parameter at a time, in module order; adapters follow when the model is wrapped."""
        machine = self.machine
        machine.enter("load")
        rows = self.model.in_order()
        for layer, p in rows:
            if not p.adapter:
                self.place(layer, p, p.created_dtype or p.dtype)
        cast = [(layer, p) for layer, p in rows if not p.adapter and (p.cast_twice or p.created_dtype not in ("", p.dtype))]
        for layer, p in cast:  # PEFT's prepare_model_for_kbit_training
            self.recast(layer, p.name, p.elements * ITEMSIZE[p.cast_twice or p.dtype])
        prepared = bool(cast) or self.model.settings.loaded == "fp32"  # which leaves nothing to cast
        if prepared and not machine.stack.software.qlora_keeps_cache:
            machine.layer = NO_LAYER
            machine.empty_cache()
        adapters = [(layer, p) for layer, p in rows if p.adapter]
        for layer, p in sorted(adapters, key=lambda row: CREATED.get(row[1].module, 0)):
            self.place(layer, p, p.created_dtype or p.dtype)
        for layer, p in adapters:  # PEFT's cast_adapter_dtype
            if p.created_dtype not in ("", p.dtype):
                first, _ = self.parameters[layer, p.name]
                self.place(layer, p, p.dtype)
                machine.release(first)
        for layer, p in rows:
            if p.cast_twice:
                self.recast(layer, p.name, p.elements * ITEMSIZE[p.dtype])
        for layer, p in rows:
            if p.trainable and not p.buffer:
                storage, value = self.parameters[layer, p.name]
                spec = TensorSpec(0, 0, p.shape, (), p.dtype, True)
                leaf = Leaf(storage, spec)
                self.leaves[value] = leaf
                self.order.append((layer, p, leaf))
        self.plan.optimizer.created(machine, self.order, self.state)
        machine.layer = NO_LAYER

    def place(self, layer: int, p: Parameter, dtype: str) -> None:
        """Allocates a parameter."""
        machine = self.machine
        machine.layer = layer
        machine.at(p.name)
        category = Category.INPUTS if p.buffer else Category.ADAPTERS if p.adapter else Category.WEIGHTS
        if p.quantized:
            storage = quantize(machine, p.elements, p.quantized == "nf4-double", int(category), int(Category.SCRATCH), not self.quantized)
            self.quantized = True
        else:
            storage = machine.alloc(p.elements * ITEMSIZE[dtype], int(category))
        self.parameters[layer, p.name] = storage, -1 - storage

    def recast(self, layer: int, name: str, nbytes: int) -> None:
        """parameter.data = parameter.data.to(dtype)."""
        machine = self.machine
        machine.layer = layer
        machine.at(name)
        before, value = self.parameters[layer, name]
        self.parameters[layer, name] = machine.alloc(nbytes, machine.category[before]), value
        machine.release(before)

    def step(self, number: int) -> None:
        """One training step."""
        machine = self.machine
        for _ in range(self.plan.accumulation):
            machine.enter(f"{number}/forward")
            self.micro_batch(number)
        machine.enter(f"{number}/optimizer")
        machine.layer = NO_LAYER
        if self.plan.clip_grad_norm:
            self.plan.optimizer.clip(machine, self.order, [p for _, p in self.whole.in_order() if p.trainable and not p.buffer])
        self.plan.optimizer.step(machine, self.order, self.state)
        for layer, _, leaf in self.order:
            if leaf.grad is not None:
                machine.layer = layer
                machine.at("zero_grad")
                machine.release(leaf.grad.storage)
                leaf.grad = None
        machine.layer = NO_LAYER

    def micro_batch(self, number: int) -> None:
        """Token ids, forward with labels, backward, and what the training loop lets go of."""
        machine, settings = self.machine, self.model.settings
        machine.layer = NO_LAYER
        machine.at("tokens")
        tokens = machine.alloc(8 * settings.batch * settings.sequence, int(Category.INPUTS))
        self.begin_autocast()
        autograd = Autograd(machine, dict(self.leaves))
        outer = self.model.outer
        bound = dict.fromkeys(outer.inputs, (tokens, -(10**9)))
        bound |= {name: self.parameters[-1, name] for name in outer.parameters}
        instance = autograd.instance(outer, bound, NO_LAYER, "")
        head, embedded = False, None
        for op in outer.operators:
            if op.kind == "layers":
                machine.default_category = int(Category.ACTIVATIONS)
                self.run_layers(autograd, instance.storages, instance.values, op)
                head = True
            else:
                machine.default_category = int(category_of(op, head))
                autograd.execute(instance, op)
                out = op.outputs[0] if op.outputs else None
                if out is not None and out.leaf:
                    embedded = Leaf(instance.storages[out.storage], out)
                    machine.retain(embedded.storage)  # by its AccumulateGrad, which the graph keeps
                    autograd.leaves[instance.values[out.value]] = embedded
        machine.default_category = int(Category.ACTIVATIONS)
        self.end_autocast(instance)
        loss = outer.outputs[0]
        machine.enter(f"{number}/backward")
        machine.at("loss.backward")
        machine.scratch_category = int(Category.LOGITS_AND_LOSS)
        one = machine.grad(loss.shape, loss.strides, loss.dtype)
        machine.scratch_category = int(Category.SCRATCH)
        autograd.backward([(instance.values[loss.value], machine.same(one))])
        machine.layer = NO_LAYER
        machine.at("loss.backward")
        machine.release(one.storage)
        machine.at("del loss, tokens")
        machine.release(*reversed(autograd.attached))
        if embedded is None or self.is_deep():
            machine.release(instance.storages[loss.storage])
        if embedded is not None:
            if embedded.grad is not None:
                machine.release(embedded.grad.storage)
            machine.release(embedded.storage)
            if not self.is_deep():
                machine.release(instance.storages[loss.storage])
        machine.release(tokens)

    def is_deep(self) -> bool:
        """Whether the graph nests so many nodes written in Python that CPython puts off the end of its deallocation until the loss itself is gone."""
        return sum(map(nested_functions, (self.whole.layer_graphs[kind] for kind in self.whole.pattern))) >= NESTED

    def recast_once(self, layer: int, instance: Instance, op: Operator) -> None:
        """A module that casts its parameter for good when it first runs."""
        (spec,) = op.inputs
        assert spec.parameter is not None
        if (layer, spec.parameter) not in self.recasts:
            self.recasts.add((layer, spec.parameter))
            self.recast(layer, spec.parameter, spec.elements * ITEMSIZE[str(op.attrs["dtype"])])
            instance.storages[spec.storage] = self.parameters[layer, spec.parameter][0]

    def begin_autocast(self) -> None:
        """torch.autocast asks once whether the device has bfloat16; before sm 80, by making such a tensor (torch/cuda, is_bf16_supported)."""
        if self.model.settings.technique.autocast == "bf16" and self.machine.stack.sm < 80 and not self.asked:
            self.asked = True
            self.machine.at("autocast.is_bf16_supported")
            self.machine.scratch(2)

    def end_autocast(self, outer: Instance) -> None:
        """The cache of weights in the lower precision is emptied."""
        machine = self.machine
        for layer, instance in [*enumerate(self.casts), (NO_LAYER, outer)]:
            machine.layer = layer
            if instance.graph.cached:
                machine.at(AUTOCAST_CACHE)
                machine.release(*(instance.storages[storage] for storage in instance.graph.cached))
        machine.layer = NO_LAYER
        self.casts.clear()

    def layer_graph(self, kind: int, requires_grad: bool, leaf: bool) -> LayerGraph:
        """The graph of a kind of layer for hidden states that do or do not require a gradient, or are a leaf, whose casts autocast keeps."""
        graph = self.model.layer_graphs[kind]
        hidden = graph.inputs["hidden_states"]
        leaf = leaf and self.model.settings.technique.autocast is not None
        if hidden.requires_grad == requires_grad and not leaf:
            return graph
        key = kind, requires_grad, leaf
        if key not in self.graphs:
            inputs = dict(graph.inputs)
            inputs["hidden_states"] = replace(hidden, requires_grad=requires_grad, leaf=leaf)
            self.graphs[key] = rewrite(graph, inputs)
        return self.graphs[key]

    def run_layers(self, autograd: Autograd, storages: list[int], values: list[int], op: Operator) -> None:
        """The loop over decoder layers: `hidden_states = decoder_layer(hidden_states, …)`."""
        machine, model = self.machine, self.model
        names: tuple[str, ...] = op.attrs.get("names", LAYER_INPUTS)  # type: ignore[assignment]
        given = {name: (storages[spec.storage], values[spec.value]) for name, spec in zip(names, op.inputs, strict=False)}
        hidden, requires_grad = given["hidden_states"], op.inputs[0].requires_grad
        for layer, kind in enumerate(model.pattern):
            machine.layer = layer
            graph = self.layer_graph(kind, requires_grad, layer == 0 and op.inputs[0].leaf)
            bound = {name: given[name] for name in graph.inputs}
            bound["hidden_states"] = hidden
            bound |= {name: self.parameters[layer, name] for name in graph.parameters}
            instance = autograd.instance(graph, bound, layer, "")
            frame = None
            if model.checkpointed:
                held = tuple(bound[name][0] for name in model.hold_inputs if name in bound)
                for storage in held:
                    machine.retain(storage)
                frame = Frame(instance, held)
            for inner in graph.operators:
                if inner.kind == "recast":
                    self.recast_once(layer, instance, inner)
                else:
                    autograd.execute(instance, inner, frame)
            self.casts.append(instance)
            out = graph.outputs[0]
            if layer > 0 or op.inputs[0].storage in op.drops:
                machine.release(hidden[0])
            hidden, requires_grad = (instance.storages[out.storage], instance.values[out.value]), out.requires_grad
        machine.layer = NO_LAYER
        storages[op.outputs[0].storage], values[op.outputs[0].value] = hidden
        for storage in op.drops:
            if storage != op.inputs[0].storage:
                machine.release(storages[storage])


@lru_cache(maxsize=64)
def nested_functions(graph: LayerGraph) -> int:
    """The most autograd functions written in Python on a path through the graph."""
    depth: dict[int, int] = {}
    for op in graph.operators:
        reached = max((depth.get(spec.value, 0) for spec in op.inputs), default=0) + (op.kind in PYTHON_FUNCTIONS)
        depth.update((spec.value, reached) for spec in op.outputs)
    return max(depth.values(), default=0)


def category_of(op: Operator, head: bool) -> Category:
    """What the results of an operator outside the layers are; `head` after the layers."""
    if op.attrs.get("no_grad") or op.kind == "create":
        return Category.INPUTS
    return Category.LOGITS_AND_LOSS if head else Category.ACTIVATIONS
