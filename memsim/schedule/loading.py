"""Loads a model: it moves to the device a parameter at a time, and adapters follow when it is wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from memsim.framework.model import Model, Parameter
from memsim.framework.roles import COPY, MAGNITUDE
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import TensorSpec
from memsim.machine.storages import NO_LAYER, Machine
from memsim.operators.linear4bit import quantize
from memsim.operators.linear8bit import quantize_rows
from memsim.operators.packed4bit import packed_sizes
from memsim.schedule.autograd.engine import Leaf
from memsim.schedule.magnitudes import placed
from memsim.schedule.plan import Plan
from memsim.tape import Category

# The turn in which PEFT makes adapters: of modules, of parameters, then copies of modules.
CREATED = {"parameter adapter": 1, "copy": 2}


@dataclass(eq=False)
class Loaded:
    """A model on the device: the storages of its parameters, those that train, and the optimizer's state."""

    model: Model
    plan: Plan
    machine: Machine
    whole: Model  # the model with all its layers, where `model` has a few of them
    # (layer, name) → (storage, autograd value)
    parameters: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)  # by autograd value
    # trainable parameters, in the order of model.parameters()
    order: list[tuple[int, Parameter, Leaf]] = field(default_factory=list)
    state: dict[int, list[int]] = field(default_factory=dict)  # optimizer state by parameter storage
    states: dict[int, dict[int, list[int]]] = field(default_factory=dict)  # the same, of each parameter's own optimizer
    row_of: dict[Leaf, tuple[int, Parameter, Leaf]] = field(default_factory=dict)
    quantized: bool = False  # a weight was quantized, so the map for scales is there

    def load(self) -> None:
        """Moves the model to the device a parameter at a time, in module order. Adapters follow when the model is
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
        if prepared and not machine.platform.software.qlora_keeps_cache:
            machine.layer = NO_LAYER
            machine.empty_cache()
        adapters = [(layer, p) for layer, p in rows if p.adapter]
        named = {(layer, p.name): p for layer, p in rows}
        turns = CREATED if not machine.platform.software.copies_modules_twice else {**CREATED, COPY: 0}
        for layer, p in sorted(adapters, key=lambda row: turns.get(row[1].module, 0)):
            if p.module == MAGNITUDE:
                self.place_magnitude(layer, p, named)
            else:
                self.place(layer, p, p.created_dtype or p.dtype)
        if machine.platform.software.copies_modules_twice:
            self.copy_again([(layer, p) for layer, p in adapters if p.module == COPY])
        for layer, p in adapters:  # PEFT's cast_adapter_dtype
            if p.created_dtype not in ("", p.dtype):
                first, _ = self.parameters[layer, p.name]
                self.place(layer, p, p.dtype)
                machine.release(first)
        for layer, p in rows:
            if p.cast_twice:
                self.recast(layer, p.name, p.elements * ITEMSIZE[p.dtype])
        self.watch(rows)
        machine.layer = NO_LAYER

    def watch(self, rows: list[tuple[int, Parameter]]) -> None:
        """Gives each parameter that trains a leaf, and an optimizer."""
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
                self.plan.optimizer.created(self.machine, [row], self.states.setdefault(row[2].storage, {}))
        else:
            self.plan.optimizer.created(self.machine, self.order, self.state)

    def copy_again(self, rows: list[tuple[int, Parameter]]) -> None:
        """Copies modules that train as a whole from the original once more. The first copies are released, one module
        after the other.
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
            # deepcopy of a tensor that is not a parameter also makes an empty tensor with one element
            if p.module == COPY and p.buffer:
                machine.scratch(ITEMSIZE[dtype])
        self.parameters[layer, p.name] = storage, -1 - storage

    def place_magnitude(self, layer: int, p: Parameter, named: Mapping[tuple[int, str], Parameter]) -> None:
        """Allocates the magnitudes of a DoRA module, as PEFT computes the first ones."""
        machine = self.machine
        machine.layer = layer
        machine.at(p.name)
        storage = placed(machine, self.model, layer, p, named)
        self.parameters[layer, p.name] = storage, -1 - storage

    def recast(self, layer: int, name: str, nbytes: int) -> None:
        """Runs parameter.data = parameter.data.to(dtype)."""
        machine = self.machine
        machine.layer = layer
        machine.at(name)
        before, value = self.parameters[layer, name]
        self.parameters[layer, name] = machine.alloc(nbytes, machine.category[before]), value
        machine.release(before)
