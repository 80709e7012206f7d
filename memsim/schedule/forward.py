"""Forward through the layers: the loop over a tower's layers, and autocast's cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memsim.framework.model import Checkpoint
from memsim.framework.rewriting import rewrite
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.machine.storages import NO_LAYER
from memsim.schedule.autograd.endings import casts_of_leaves, leaves_made
from memsim.schedule.autograd.engine import Autograd, Leaf, Reentrant
from memsim.schedule.autograd.regions import Frame, Instance, core_region, open_region
from memsim.schedule.loading import Loaded
from memsim.tape import AUTOCAST_CACHE

# names of a layer's inputs, where the graph does not give them
LAYER_INPUTS = ("hidden_states", "cos", "sin", "position_ids", "attention_mask")


@dataclass(eq=False)
class Forward(Loaded):
    """A loaded model that runs its layers."""

    graphs: dict[tuple[int, bool, bool, bool], LayerGraph] = field(default_factory=dict)
    asked: bool = False  # autocast has asked whether the device has bfloat16
    recasts: set[tuple[int, str]] = field(default_factory=set)  # parameters that their modules have cast permanently
    # tensors marked as requiring a gradient, and for each the storages that its accumulator holds
    told: list[tuple[Leaf, list[int]]] = field(default_factory=list)
    # value of a leaf → where autocast cast it, and the result
    kept_casts: dict[int, tuple[Instance, TensorSpec]] = field(default_factory=dict)
    casts: list[Instance] = field(default_factory=list)  # the layers of this forward pass

    def tell(self, autograd: Autograd, instance: Instance, out: TensorSpec) -> None:
        """Marks a tensor as requiring a gradient. Its AccumulateGrad, which the graph keeps, holds it."""
        leaf = Leaf(instance.storages[out.storage], out)
        self.machine.retain(leaf.storage)
        value = instance.values[out.value]
        autograd.leaves[value] = leaf
        self.told.append((leaf, autograd.holding.leaf(value) if autograd.holding else []))

    def recast_once(self, layer: int, instance: Instance, op: Operator) -> None:
        """Casts a parameter permanently, as its module does when it first runs."""
        (spec,) = op.inputs
        assert spec.parameter is not None
        if (layer, spec.parameter) not in self.recasts:
            self.recasts.add((layer, spec.parameter))
            self.recast(layer, spec.parameter, spec.elements * ITEMSIZE[str(op.attrs["dtype"])])
            instance.storages[spec.storage] = self.parameters[layer, spec.parameter][0]

    def begin_autocast(self) -> None:
        """Asks once whether the device has bfloat16, as torch.autocast does. Before sm 80 that makes such a tensor
        (torch/cuda, is_bf16_supported).
        """
        if self.model.settings.technique.autocast == "bf16" and self.machine.platform.sm < 80 and not self.asked:
            self.asked = True
            self.machine.at("autocast.is_bf16_supported")
            self.machine.scratch(2)

    def end_autocast(self, outer: Instance) -> None:
        """Empties the cache of weights in the lower precision."""
        machine = self.machine
        for layer, instance in [*enumerate(self.casts), (NO_LAYER, outer)]:
            machine.layer = layer
            if instance.graph.cached:
                machine.at(AUTOCAST_CACHE)
                machine.release(*(instance.storages[storage] for storage in instance.graph.cached))
        machine.layer = NO_LAYER
        self.casts.clear()

    def layer_graph(self, kind: int, requires_grad: bool, leaf: bool, grad: bool = True) -> LayerGraph:
        """Returns the graph of a kind of layer for hidden states that do or do not require a gradient. They may be a
        leaf, whose casts autocast keeps. With `grad` false, the graph is that without autograd.
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
        """Runs the loop over the layers of a tower: `hidden_states = decoder_layer(hidden_states, …)`."""
        machine, model = self.machine, self.model
        span = model.spans()[int(op.attrs.get("tower", 0))]  # type: ignore[call-overload]
        by_layer = model.by_layer()
        names: tuple[str, ...] = op.attrs.get("names") or LAYER_INPUTS  # type: ignore[assignment]
        given = {
            name: (storages[spec.storage], values[spec.value]) for name, spec in zip(names, op.inputs, strict=False)
        }
        hidden, requires_grad = given["hidden_states"], op.inputs[0].requires_grad
        frame: Frame | None = None
        returned: list[int] = []  # other results that the layer before returned in a tuple with its hidden states
        # Only the loop has a name for the hidden states.
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
            frame = self.run_layer(autograd, instance, checkpoint, frame, bound)
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
            # No operator in the region asks for its arguments.
            if frame is not None and not frame.pending and at == checkpoint.layers - 1:
                frame.close(machine)
            for name, spec in zip(graph.results[1:], graph.outputs[1:], strict=False):
                given[name] = instance.storages[spec.storage], instance.values[spec.value]
        machine.layer = NO_LAYER
        hand_on(op, storages, values, hidden, given, returned)
        for storage in op.drops:
            if storage != op.inputs[0].storage or not moved:
                machine.release(storages[storage])

    def run_layer(
        self,
        autograd: Autograd,
        instance: Instance,
        checkpoint: Checkpoint,
        frame: Frame | None,
        bound: dict[str, tuple[int, int]],
    ) -> Frame | None:
        """Runs the operators of one layer. Returns the region that is open after them."""
        graph = instance.graph
        made, kept = leaves_made(graph), casts_of_leaves(graph)
        for op in graph.operators:
            if op.kind == "recast":
                self.recast_once(instance.layer, instance, op)
            elif op.index in kept and self.is_cast(instance, op):
                self.machine.release(*(instance.storages[s] for s in op.drops))
            else:
                if checkpoint.how == "megatron":
                    frame = core_region(self.machine, instance, op, frame, bound)
                autograd.execute(instance, op, frame, checkpoint.how == "offload")
                if op.index in made:
                    self.tell(autograd, instance, op.outputs[0])
        return frame

    def is_cast(self, instance: Instance, op: Operator) -> bool:
        """True if autocast has already cast this leaf, which several layers read, and keeps the result. Otherwise it
        casts the leaf now.
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


def hand_on(
    op: Operator,
    storages: list[int],
    values: list[int],
    hidden: tuple[int, int],
    given: dict[str, tuple[int, int]],
    returned: list[int],
) -> None:
    """Hands on the results of the loop over layers: hidden states, those that layers carry on by name, and those that
    the last one returned beside them.
    """
    carried = [given[name] for name in op.attrs.get("carries", ())]  # type: ignore[attr-defined]
    for spec, (storage, value) in zip(op.outputs, (hidden, *carried), strict=not returned):
        storages[spec.storage], values[spec.value] = storage, value
    for spec, storage in zip(op.outputs[1:], returned, strict=False):
        storages[spec.storage] = storage
