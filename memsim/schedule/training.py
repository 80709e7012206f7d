"""Training steps: load, then forward, backward and optimizer, for a model small enough to execute operator by operator
in Python.

`record` executes a few layers only; `tile` repeats the middle one (schedule/tile.py), so that an 80-layer model costs
what five layers cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from memsim.cost.roofline import Rates
from memsim.framework.model import Model, Parameter
from memsim.framework.rewriting import rewrite
from memsim.framework.roles import COPY, MAGNITUDE
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.machine.storages import NO_LAYER, Machine
from memsim.operators.linear4bit import quantize
from memsim.operators.linear8bit import quantize_rows
from memsim.operators.packed4bit import packed_sizes
from memsim.schedule.autograd.endings import at_end, casts_of_leaves, end_of_leaves, leaves_made
from memsim.schedule.autograd.engine import Autograd, Leaf, Reentrant
from memsim.schedule.autograd.nodes import Nodes, holds_tensors
from memsim.schedule.autograd.regions import Frame, Instance, core_region, open_region
from memsim.schedule.grad_scaler import GradScaler
from memsim.schedule.magnitudes import placed
from memsim.schedule.optimizers.torch_optim import FUSED, Optimizer
from memsim.tape import AUTOCAST_CACHE, Category

# of a layer, where the graph does not name them
LAYER_INPUTS = ("hidden_states", "cos", "sin", "position_ids", "attention_mask")
# the turn at which PEFT makes adapters: of modules, of parameters, then copies of modules
CREATED = {"parameter adapter": 1, "copy": 2}


@dataclass(frozen=True)
class Plan:
    """What of a Run decides the schedule."""

    steps: int
    accumulation: int
    clip_grad_norm: float | None
    optimizer: Optimizer
    rates: Rates | None = None  # what estimates the time
    in_backward: bool = False  # an optimizer for each parameter, which steps once its gradient is there
    grad_scaler: bool = False


@dataclass(eq=False)
class Training:
    """A training process: the machine, the loaded parameters, and what they have accumulated."""

    model: Model
    plan: Plan
    machine: Machine
    whole: Model  # with all its layers, where `model` has a few of them
    # (layer, name) → (storage, autograd value)
    parameters: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)  # by autograd value
    # trainable, as model.parameters() gives them
    order: list[tuple[int, Parameter, Leaf]] = field(default_factory=list)
    state: dict[int, list[int]] = field(default_factory=dict)  # optimizer state by parameter storage
    states: dict[int, dict[int, list[int]]] = field(default_factory=dict)  # the same, of each parameter's own optimizer
    row_of: dict[Leaf, tuple[int, Parameter, Leaf]] = field(default_factory=dict)
    graphs: dict[tuple[int, bool, bool, bool], LayerGraph] = field(default_factory=dict)
    ran: bool = False  # the model has, so what it makes when it first runs is there
    asked: bool = False  # autocast has asked whether the device has bfloat16
    quantized: bool = False  # a weight was, so the map for scales is there
    recasts: set[tuple[int, str]] = field(default_factory=set)  # parameters that their modules have cast for good
    # tensors told to require a gradient, and what of each its accumulator holds
    told: list[tuple[Leaf, list[int]]] = field(default_factory=list)
    # the order in which the graph lets go of those tensors: before the loss itself goes, and after
    ending: tuple[list[int], list[int]] | None = None
    # of leaves by value: where autocast cast them, and the result
    kept_casts: dict[int, tuple[Instance, TensorSpec]] = field(default_factory=dict)
    casts: list[Instance] = field(default_factory=list)  # of the layers in this forward pass
    scaler: GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.machine, self.plan.grad_scaler)

    def load(self) -> None:
        """Moves the model to the device a parameter at a time, in module order; adapters follow when the model is
        wrapped.
        """
        machine = self.machine
        machine.enter("load")
        rows = self.model.in_order()
        for layer, p in rows:
            if not p.adapter:
                self.place(layer, p, p.created_dtype or p.dtype)
        cast = [
            (layer, p) for layer, p in rows if not p.adapter and (p.cast_twice or p.created_dtype not in ("", p.dtype))
        ]
        for layer, p in cast:  # PEFT's prepare_model_for_kbit_training
            self.recast(layer, p.name, p.elements * ITEMSIZE[p.cast_twice or p.dtype])
        prepared = bool(cast) or self.model.settings.loaded == "fp32"  # which leaves nothing to cast
        if prepared and not machine.stack.software.qlora_keeps_cache:
            machine.layer = NO_LAYER
            machine.empty_cache()
        adapters = [(layer, p) for layer, p in rows if p.adapter]
        named = {(layer, p.name): p for layer, p in rows}
        turns = CREATED if not machine.stack.software.copies_modules_twice else {**CREATED, COPY: 0}
        for layer, p in sorted(adapters, key=lambda row: turns.get(row[1].module, 0)):
            if p.module == MAGNITUDE:
                self.place_magnitude(layer, p, named)
            else:
                self.place(layer, p, p.created_dtype or p.dtype)
        if machine.stack.software.copies_modules_twice:
            self.copy_again([(layer, p) for layer, p in adapters if p.module == COPY])
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
        if self.plan.in_backward:
            for row in self.order:
                self.row_of[row[2]] = row
                self.plan.optimizer.created(machine, [row], self.states.setdefault(row[2].storage, {}))
        else:
            self.plan.optimizer.created(machine, self.order, self.state)
        machine.layer = NO_LAYER

    def copy_again(self, rows: list[tuple[int, Parameter]]) -> None:
        """Modules that train as a whole are copied from the original once more, and the first copies go, a module after
        the other.
        """
        for _, module in groupby(rows, key=lambda row: (row[0], row[1].name.rpartition(".")[0])):
            of_module = list(module)
            first = [self.parameters[layer, p.name][0] for layer, p in of_module]
            for layer, p in of_module:
                self.place(layer, p, p.created_dtype or p.dtype)
            self.machine.release(*first)

    def place(self, layer: int, p: Parameter, dtype: str) -> None:
        """Allocates a parameter."""
        machine = self.machine
        machine.layer = layer
        machine.at(p.name)
        category = Category.INPUTS if p.buffer else Category.ADAPTERS if p.adapter else Category.WEIGHTS
        if p.quantized == "int8":
            storage = quantize_rows(machine, p.shape, int(category), int(Category.SCRATCH))
        elif ":" in p.quantized:
            kind, _, group = p.quantized.partition(":")
            storage, *_ = [machine.alloc(size, int(category)) for size in packed_sizes(kind, p.shape, int(group))]
        elif p.quantized:
            storage = quantize(
                machine,
                p.elements,
                p.quantized == "nf4-double",
                int(category),
                int(Category.SCRATCH),
                not self.quantized,
            )
            self.quantized = True
        else:
            storage = machine.alloc(p.elements * ITEMSIZE[dtype], int(category))
            # deepcopy of a tensor that is no parameter also makes an empty one of an element
            if p.module == COPY and p.buffer:
                machine.scratch(ITEMSIZE[dtype])
        self.parameters[layer, p.name] = storage, -1 - storage

    def place_magnitude(self, layer: int, p: Parameter, named: Mapping[tuple[int, str], Parameter]) -> None:
        """Allocates the magnitudes of a DoRA module, as PEFT finds the first ones."""
        machine = self.machine
        machine.layer = layer
        machine.at(p.name)
        storage = placed(machine, self.model, layer, p, named)
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
        """The hook of a parameter's own optimizer: step(), zero_grad()."""
        row = self.row_of.get(leaf)
        if row is None:  # the embedded tokens, which a checkpoint told to require a gradient
            return
        machine, optimizer = self.machine, self.plan.optimizer
        layer = machine.layer
        optimizer.step(machine, [row], self.states.setdefault(leaf.storage, {}))
        optimizer.zero_grad(machine, [row])
        machine.layer = layer
        machine.at("AccumulateGrad")

    def micro_batch(self, number: int) -> None:
        """The batch, forward with labels, backward, and what the training loop lets go of."""
        machine = self.machine
        machine.layer = NO_LAYER
        machine.at("tokens")
        given = {name: machine.alloc(nbytes, int(Category.INPUTS)) for name, nbytes in self.model.batch_bytes().items()}
        tokens, *others = given.values()
        self.begin_autocast()
        # whose graphs are not in this one
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
        loss = outer.outputs[0]
        machine.enter(f"{number}/backward")
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
        machine.release(*before, instance.storages[loss.storage], *after, tokens, *reversed(others))

    def tell(self, autograd: Autograd, instance: Instance, out: TensorSpec) -> None:
        """A tensor was told to require a gradient: its AccumulateGrad, which the graph keeps, has a hold of it."""
        leaf = Leaf(instance.storages[out.storage], out)
        self.machine.retain(leaf.storage)
        value = instance.values[out.value]
        autograd.leaves[value] = leaf
        self.told.append((leaf, autograd.holding.leaf(value) if autograd.holding else []))

    def recast_once(self, layer: int, instance: Instance, op: Operator) -> None:
        """A module that casts its parameter for good when it first runs."""
        (spec,) = op.inputs
        assert spec.parameter is not None
        if (layer, spec.parameter) not in self.recasts:
            self.recasts.add((layer, spec.parameter))
            self.recast(layer, spec.parameter, spec.elements * ITEMSIZE[str(op.attrs["dtype"])])
            instance.storages[spec.storage] = self.parameters[layer, spec.parameter][0]

    def begin_autocast(self) -> None:
        """torch.autocast asks once whether the device has bfloat16; before sm 80, by making such a tensor (torch/cuda,
        is_bf16_supported).
        """
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

    def layer_graph(self, kind: int, requires_grad: bool, leaf: bool, grad: bool = True) -> LayerGraph:
        """The graph of a kind of layer for hidden states that do or do not require a gradient, or are a leaf, whose
        casts autocast keeps; or without autograd.
        """
        graph = self.model.layer_graphs[kind]
        hidden = graph.inputs["hidden_states"]
        leaf = leaf and self.model.settings.technique.autocast is not None
        if hidden.requires_grad == requires_grad and not leaf and grad:
            return graph
        key = kind, requires_grad, leaf, grad
        if key not in self.graphs:
            inputs = dict(graph.inputs)
            inputs["hidden_states"] = replace(hidden, requires_grad=requires_grad, leaf=leaf)
            self.graphs[key] = rewrite(graph, inputs, grad)
        return self.graphs[key]

    def run_layers(self, autograd: Autograd, storages: list[int], values: list[int], op: Operator) -> None:
        """The loop over the layers of a tower: `hidden_states = decoder_layer(hidden_states, …)`."""
        machine, model = self.machine, self.model
        span = model.spans()[int(op.attrs.get("tower", 0))]  # type: ignore[call-overload]
        by_layer = model.by_layer()
        names: tuple[str, ...] = op.attrs.get("names") or LAYER_INPUTS  # type: ignore[assignment]
        given = {
            name: (storages[spec.storage], values[spec.value]) for name, spec in zip(names, op.inputs, strict=False)
        }
        hidden, requires_grad = given["hidden_states"], op.inputs[0].requires_grad
        frame: Frame | None = None
        returned: list[int] = []  # what else the layer before returned, in a tuple with its hidden states
        # nobody but the loop has a name for the hidden states
        moved = op.inputs[0].storage in op.drops and not op.attrs.get("held")
        for layer in span:
            kind, (checkpoint, at) = model.pattern[layer], by_layer[layer]
            first = layer == span.start
            machine.layer = layer
            reentrant = checkpoint.how == "reentrant"
            graph = self.layer_graph(kind, requires_grad, first and op.inputs[0].leaf, grad=not reentrant)
            bound = {name: given[name] for name in graph.inputs}
            bound["hidden_states"] = hidden
            bound |= {name: self.parameters[layer, name] for name in graph.parameters}
            instance = autograd.instance(graph, bound, layer, "")
            if at == 0:
                frame = open_region(machine, checkpoint, model.hold_inputs, bound)
            if frame is not None:
                frame.instances.append(instance)
            made, kept = leaves_made(graph), casts_of_leaves(graph)
            for inner in graph.operators:
                if inner.kind == "recast":
                    self.recast_once(layer, instance, inner)
                elif inner.index in kept and self.is_cast(instance, inner):
                    machine.release(*(instance.storages[s] for s in inner.drops))
                else:
                    if checkpoint.how == "megatron":
                        frame = core_region(machine, instance, inner, frame, bound)
                    autograd.execute(instance, inner, frame, checkpoint.how == "offload")
                    if inner.index in made:
                        self.tell(autograd, instance, inner.outputs[0])
            if reentrant:
                held, saved = ([bound[name][0] for name in names if name in bound] for names in model.by_reference())
                autograd.checkpoint(instance, Reentrant(self.layer_graph(kind, True, True), bound), held, saved)
            self.casts.append(instance)
            out = graph.outputs[0]
            if op.attrs.get("extra"):
                machine.release(*returned)
                returned = [instance.storages[spec.storage] for spec in graph.outputs[1:]]
            if not first or moved:
                machine.release(hidden[0])
            hidden, requires_grad = (
                (instance.storages[out.storage], instance.values[out.value]),
                out.requires_grad or reentrant,
            )
            # nothing in it asks for its arguments
            if frame is not None and not frame.pending and at == checkpoint.layers - 1:
                frame.close(machine)
            for name, spec in zip(graph.results[1:], graph.outputs[1:], strict=False):
                given[name] = instance.storages[spec.storage], instance.values[spec.value]
        machine.layer = NO_LAYER
        carried = [given[name] for name in op.attrs.get("carries", ())]  # type: ignore[attr-defined]
        for spec, (storage, value) in zip(op.outputs, (hidden, *carried), strict=not returned):
            storages[spec.storage], values[spec.value] = storage, value
        for spec, storage in zip(op.outputs[1:], returned, strict=False):
            storages[spec.storage] = storage
        for storage in op.drops:
            if storage != op.inputs[0].storage or not moved:
                machine.release(storages[storage])

    def is_cast(self, instance: Instance, op: Operator) -> bool:
        """Whether autocast has cast this leaf, which several layers read, before, and keeps the result; else it does
        now.
        """
        (out,) = op.outputs
        before = self.kept_casts.setdefault(instance.values[op.inputs[0].value], (instance, out))
        if before[0] is instance:
            return False
        instance.storages[out.storage], instance.values[out.value] = (
            before[0].storages[before[1].storage],
            before[0].values[before[1].value],
        )
        self.machine.retain(instance.storages[out.storage])
        return True


def category_of(op: Operator, head: bool) -> Category:
    """What the results of an operator outside the layers are; `head` after the layers."""
    if op.attrs.get("no_grad") or op.kind == "create":
        return Category.INPUTS
    return Category.LOGITS_AND_LOSS if head else Category.ACTIVATIONS
