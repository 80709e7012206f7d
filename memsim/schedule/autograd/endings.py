"""Tensors that go with the loss: the graph holds them, and releases them in the order in which its nodes die."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from memsim.framework.model import Model
from memsim.graph.layer_graph import LayerGraph, TensorSpec
from memsim.schedule.autograd.nodes import NESTED, PYTHON_FUNCTIONS, Nodes

ARGUMENTS = 3  # levels that the arguments by name of a reentrant checkpoint nest further: a dict, a tuple, a tensor


def at_end(whole: Model, kept: list[int], attached: list[int]) -> tuple[list[int], list[int]]:
    """Returns the storages that the graph releases before the loss itself goes, and after it: the embeddings' output,
    and those that reentrant checkpoints hold.
    """
    nested, reentrant = _nested(whole), any(c.how == "reentrant" for c in whole.checkpoints)
    if reentrant and whole.settings.stack.checkpoints_positional_arguments:
        return attached[::-1] + kept, []
    late = reentrant and nested >= NESTED - ARGUMENTS
    if nested == NESTED - 2:  # the dict of arguments goes as it stands, its tuples from their end
        attached = _tuples_turned(whole, attached)
    before, after = ([], attached if nested < NESTED - 1 else attached[::-1]) if late else (attached[::-1], [])
    return (before, kept + after) if nested >= NESTED else (before + kept, after)


def _tuples_turned(whole: Model, attached: list[int]) -> list[int]:
    """What reentrant checkpoints hold, a group for each of them, with every pair of rotary tables turned round."""
    rows = zip(whole.pattern, whole.by_layer(), strict=True)
    graphs = (whole.layer_graphs[kind] for kind, (checkpoint, _) in rows if checkpoint.how == "reentrant")
    names = {tuple(name for name in reversed(whole.by_reference()[0]) if name in graph.inputs) for graph in graphs}
    pairs = {tuple(i for i, name in enumerate(group) if name.endswith(("cos", "sin"))) for group in names}
    if len(pairs) > 1 or len({len(group) for group in names}) > 1:  # layers that are not alike: as they stand
        return attached
    (pair,), (length, *_) = pairs, [len(group) for group in names]
    if len(pair) != 2 or pair[1] - pair[0] != 1:
        return attached
    order = list(range(length))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return [attached[at + i] for at in range(0, len(attached), length) for i in order]


def _nested(whole: Model) -> int:
    """Number of nodes written in Python that the graph nests. From NESTED on, CPython puts off the end of its
    deallocation until the loss itself is gone.
    """
    if whole.settings.stack.frees_nested_graphs_at_once:
        return 0
    rows = zip(whole.pattern, whole.by_layer(), strict=True)
    return sum(
        1 if checkpoint.how == "reentrant" else nested_functions(whole.layer_graphs[kind])
        for kind, (checkpoint, _) in rows
    )


@lru_cache(maxsize=64)
def nested_functions(graph: LayerGraph) -> int:
    """Largest number of autograd functions written in Python on a path through the graph."""
    depth: dict[int, int] = {}
    for op in graph.operators:
        reached = max((depth.get(spec.value, 0) for spec in op.inputs), default=0) + (op.kind in PYTHON_FUNCTIONS)
        depth.update((spec.value, reached) for spec in op.outputs)
    return max(depth.values(), default=0)


@lru_cache(maxsize=256)
def leaves_made(graph: LayerGraph) -> frozenset[int]:
    """Returns the operators of a layer whose result is marked as requiring a gradient."""
    return frozenset(op.index for op in graph.operators if op.outputs and op.outputs[0].leaf and op.kind != "new_leaf")


@lru_cache(maxsize=256)
def casts_of_leaves(graph: LayerGraph) -> frozenset[int]:
    """Returns the operators of a layer in which autocast casts a leaf that is not a parameter, and keeps the result."""
    return frozenset(
        op.index
        for op in graph.operators
        if op.attrs.get("autocast") and op.inputs[0].leaf and op.inputs[0].parameter is None
    )


class Walk:
    """The nodes that a forward pass over the whole model makes, without its memory. Tensors that are marked as
    requiring a gradient are numbered.
    """

    def __init__(self, whole: Model, layer_graph: Callable[[int, bool, bool], LayerGraph]) -> None:
        self.whole, self.layer_graph = whole, layer_graph
        self.nodes = Nodes(tensors=False)
        self.told = 0
        self.values = 0
        self.casts: dict[int, int] = {}  # value of a leaf → value of the cast that autocast keeps

    def fresh(self, graph: LayerGraph) -> list[int]:
        """Returns the values of one execution of a graph."""
        self.values += graph.values
        return list(range(self.values - graph.values, self.values))

    def tell(self, value: int) -> None:
        """Numbers a leaf."""
        self.nodes.leaf(value).append(self.told)
        self.told += 1

    def end(self) -> tuple[list[int], list[int]]:
        """Returns the numbers of the leaves in the order in which they go: those before the loss, and
        those after it.
        """
        outer = self.whole.outer
        values = self.fresh(outer)
        for op in outer.operators:
            if op.kind == "layers":
                names: tuple[str, ...] = op.attrs["names"]  # type: ignore[assignment]
                given = {name: values[spec.value] for name, spec in zip(names, op.inputs, strict=True)}
                self.layers(int(op.attrs.get("tower", 0)), given, op.inputs[0])  # type: ignore[call-overload]
                values[op.outputs[0].value] = given["hidden_states"]
                continue
            self.nodes.add(op, values, ())
            if op.outputs and op.outputs[0].leaf:
                self.tell(values[op.outputs[0].value])
        return self.nodes.end(values[outer.outputs[0].value])

    def layers(self, tower: int, given: dict[str, int], hidden: TensorSpec) -> None:
        """Runs the layers of a tower. `given` are values by name; those that the layers hand on are replaced."""
        span = self.whole.spans()[tower]
        for layer in span:
            first = layer == span.start
            graph = self.layer_graph(
                self.whole.pattern[layer], hidden.requires_grad or not first, first and hidden.leaf
            )
            values, made, kept = self.fresh(graph), leaves_made(graph), casts_of_leaves(graph)
            for name, spec in graph.inputs.items():
                values[spec.value] = given[name]
            for op in graph.operators:
                if op.index in kept:
                    leaf, cast = values[op.inputs[0].value], op.outputs[0].value
                    if leaf in self.casts:
                        values[cast] = self.casts[leaf]
                        continue
                    self.casts[leaf] = values[cast]
                self.nodes.add(op, values, ())
                if op.index in made:
                    self.tell(values[op.outputs[0].value])
            given |= {name: values[spec.value] for name, spec in zip(graph.results, graph.outputs, strict=True)}


def end_of_leaves(whole: Model, layer_graph: Callable[[int, bool, bool], LayerGraph]) -> tuple[list[int], list[int]]:
    """Release order of leaf tensors when the graph is freed: (before the loss, after the loss). The leaves are numbered
    in the order in which they were marked as requiring a gradient.

    layer_graph: the graph of a kind of layer whose hidden states require a gradient or not, and are a leaf or not.
    """
    return Walk(whole, layer_graph).end()
