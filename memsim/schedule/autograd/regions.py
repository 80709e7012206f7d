"""What stands between a layer and backward: torch.utils.checkpoint's regions, and saved tensors that travel to the
host.

A region is what one call of checkpoint() runs: a layer, a segment of several, or a part of one. It keeps its arguments.
It runs again when backward first asks for a tensor that an operator in it saved (_CheckpointFrame in
torch/utils/checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memsim.framework.model import Checkpoint
from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.machine.storages import RECOMPUTED, Machine
from memsim.operators import KINDS
from memsim.schedule.autograd.nodes import Nodes, holds_tensors
from memsim.tape import AUTOCAST_CACHE, Category


@dataclass(eq=False, slots=True)
class Instance:
    """One execution of a layer graph: the storage and the autograd value of each of its tensors."""

    graph: LayerGraph
    storages: list[int]  # by the graph's storage number
    values: list[int]  # by the graph's value number
    layer: int
    prefix: str


@dataclass(eq=False, slots=True)
class Frame:
    """A checkpointed region: what it must hold to run again, and what its second run kept."""

    held: tuple[int, ...]  # storages of arguments, in the order in which they are released
    saves: frozenset[str] = frozenset()  # kinds of operators whose results are kept (selective checkpointing)
    instances: list[Instance] = field(default_factory=list)  # executions of its layers
    operators: Sequence[Operator] | None = None  # operators of its one layer, where it is a part of it
    pending: int = 0  # number of nodes whose saved tensors are still hooked to it
    saved: dict[tuple[int, int], list[int]] | None = None  # (layer, operator index) → storages, once recomputed
    # results that were kept, until the region runs again
    cached: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def of(self, instance: Instance) -> Sequence[Operator]:
        """Returns the operators of the region in one of its layers."""
        return instance.graph.operators if self.operators is None else self.operators

    def close(self, machine: Machine) -> None:
        """Closes the region. Kept results that nothing asked for are released, then its arguments."""
        if self.cached:
            self._drop_cache(machine)
        machine.release(*self.held)

    def _drop_cache(self, machine: Machine) -> None:
        """Releases the kept results: a dict for each function of torch.ops.aten, in the order in which they were first
        called.
        """
        order: dict[str, list[int]] = {}
        for instance in self.instances:
            for op in self.of(instance):
                order.setdefault(function_of(op), []).extend(self.cached.get((instance.layer, op.index), ()))
        for storages in order.values():
            machine.release(*storages)


def open_region(
    machine: Machine, checkpoint: Checkpoint, names: Sequence[str], bound: dict[str, tuple[int, int]]
) -> Frame | None:
    """Opens the region of a call of torch.utils.checkpoint.checkpoint; None where there is no call. names: its
    arguments, in the order in which it releases them.
    """
    if checkpoint.how not in ("full", "selective"):
        return None
    held = tuple(bound[name][0] for name in names if name in bound)
    for storage in held:
        machine.retain(storage)
    return Frame(held, checkpoint.saves)


def core_region(
    machine: Machine, instance: Instance, op: Operator, frame: Frame | None, bound: dict[str, tuple[int, int]]
) -> Frame | None:
    """Returns the region of the call of checkpoint that an operator is in, where only the core of attention is
    checkpointed.
    """
    arguments: tuple[int, ...] | None = op.attrs.get("core")  # type: ignore[assignment]
    if arguments is None or frame is not None:
        if frame is not None and not arguments and not frame.pending:
            frame.close(machine)
        return frame if arguments else None
    by_name = [bound[name][0] for name in ("position_ids",) if name in bound]
    held = (*by_name, *(instance.storages[s] for s in reversed(arguments)))  # a list goes from its end
    for storage in held:
        machine.retain(storage)
    return Frame(held, instances=[instance], operators=[op for op in instance.graph.operators if op.attrs.get("core")])


SAME_FUNCTION = {
    "mul_scalar": "mul",
    "complex_mul": "mul",
    "add_scalar": "add",
    "reshape": "clone",
    "pow": "square",
    "matmul": "bmm",
}


def function_of(op: Operator) -> str:
    """Names the function of torch.ops.aten that an operator calls. The name tells apart the functions whose results
    selective checkpointing may keep.
    """
    kind = SAME_FUNCTION.get(op.kind, op.kind)
    return kind if kind != "linear" else "addmm" if len(op.inputs) == 3 else "mm"


def results_kept(op: Operator) -> list[int]:
    """Returns the storages (of the graph) that a selective checkpoint keeps of an operator: those of all its results,
    hidden ones too.
    """
    taken = {spec.storage for spec in op.inputs}
    return [spec.storage for spec in op.outputs if spec.storage not in taken]


def recompute(machine: Machine, frame: Frame) -> None:
    """Runs a region again up to its last saved tensor, where torch.utils.checkpoint stops early by an exception."""
    category, machine.default_category = machine.default_category, int(Category.RECOMPUTATION)
    layer = machine.layer
    frame.saved = {}
    casts: list[int] = []  # casts of the layers so far, in autocast's cache
    given: int | None = None  # the hidden states that the layer before handed on
    nodes = Nodes(tensors=True) if any(holds_tensors(first.graph) for first in frame.instances) else None
    for first in frame.instances[:-1]:
        again = _again(first, given)
        machine.layer = first.layer
        for op in frame.of(first):
            _execute(machine, frame, again, op, nodes)
            _keep(machine, frame, again, op)
            for s in op.drops:
                _let_go(machine, again.storages[s], nodes)
        casts += [again.storages[s] for s in first.graph.cached]
        if given is not None:
            _let_go(machine, given, nodes)
        given = again.storages[first.graph.outputs[0].storage]
    _recompute_last(machine, frame, given, casts, nodes)
    if given is not None:
        _let_go(machine, given, nodes)
    machine.layer = layer
    machine.default_category = category


def _again(first: Instance, given: int | None) -> Instance:
    graph = first.graph
    storages = [-1] * len(graph.storage_bytes)
    for group in (graph.inputs, graph.parameters):
        for spec in group.values():
            storages[spec.storage] = first.storages[spec.storage]
    if given is not None:
        storages[graph.inputs["hidden_states"].storage] = given
    return Instance(graph, storages, first.values, first.layer, first.prefix)


def _let_go(machine: Machine, storage: int, nodes: Nodes | None) -> None:
    """Ends a name. If it was the last of a result whose node nothing else reads, what the node holds
    is released too.
    """
    if nodes:
        machine.release(*nodes.drop(storage))
    machine.release(storage)


def _execute(machine: Machine, frame: Frame, again: Instance, op: Operator, nodes: Nodes | None) -> None:
    """Runs an operator again, or takes the results that were kept."""
    key = again.layer, op.index
    machine.at(again.prefix + op.name)
    if key in frame.cached:
        for spec, storage in zip(results_kept(op), frame.cached.pop(key), strict=True):
            again.storages[spec] = storage
    else:
        results: list[int] = []
        KINDS[op.kind].forward(machine, op.inputs, op.outputs, op.attrs, results)
        for out, storage in zip(op.outputs, results, strict=True):
            if storage >= 0:
                again.storages[out.storage] = storage
        machine.worked(op, RECOMPUTED)
    if nodes:
        for s in nodes.add(op, again.values, again.storages):
            machine.retain(s)


def _keep(machine: Machine, frame: Frame, again: Instance, op: Operator) -> None:
    if op.saved:
        assert frame.saved is not None
        frame.saved[again.layer, op.index] = [again.storages[s] for s in op.saved]
        for s in op.saved:
            machine.retain(again.storages[s])


def _recompute_last(
    machine: Machine, frame: Frame, given: int | None, casts: Sequence[int], nodes: Nodes | None
) -> None:
    """Runs the last layer of the region again, or the part of it that the region is."""
    first = frame.instances[-1]
    graph, again = first.graph, _again(first, given)
    storages = again.storages
    operators = frame.of(first)
    if frame.operators is not None:  # results of its layer that the part reads
        for s, storage in enumerate(first.storages):
            if storages[s] < 0:
                storages[s] = storage
    machine.layer = first.layer
    last = max(op.index for op in operators if op.saved)
    alive: dict[int, None] = {}
    for op in operators:
        before_compute = (
            op.index == last
            and not any(out.storage in op.saved for out in op.outputs)
            and not KINDS[op.kind].in_python(op.attrs)
        )
        if not before_compute:
            _execute(machine, frame, again, op, nodes)
            for out in op.outputs:
                if not any(out.storage == read.storage for read in op.inputs):
                    alive[out.storage] = None
        _keep(machine, frame, again, op)
        if op.index == last:
            break
        for s in op.drops:
            if s in alive or frame.operators is None:
                _let_go(machine, storages[s], nodes)
                alive.pop(s, None)
    # The exception unwinds. First go the results of the operator that it left and the casts that autocast made for it,
    # then the other results of the expression.
    stack: tuple[int, ...] = graph.operators[last].attrs.get("stack", ())  # type: ignore[assignment]
    casts_of = {out.storage for op in operators if op.attrs.get("autocast") for out in op.outputs}
    cast = [s for s in graph.operators[last].drops if s in casts_of]
    for s in (*(out.storage for out in graph.operators[last].outputs), *cast, *stack, *graph.operators[last].operands):
        if s in alive:
            _let_go(machine, storages[s], nodes)
            del alive[s]
    # The exception ends the contexts, autocast's too. Only then do the frames that it passed die.
    if graph.cached or casts:
        machine.at(AUTOCAST_CACHE)
        machine.release(*casts)
        for s in graph.cached:
            if s in alive:
                _let_go(machine, storages[s], nodes)
                del alive[s]
        machine.at(first.prefix + graph.operators[last].name)
    # Then the locals of inner functions go, in the order of their slots where that is known, otherwise as on return.
    unwind: tuple[int, ...] = graph.operators[last].attrs.get("unwind", ())  # type: ignore[assignment]
    callers: tuple[int, ...] = graph.operators[last].attrs.get("unwind_last", ())  # type: ignore[assignment]
    for s in (*unwind, *(s for op in graph.operators[last:] for s in op.drops if s not in callers), *callers):
        if s in alive:
            _let_go(machine, storages[s], nodes)
            del alive[s]
    for s in alive:
        _let_go(machine, storages[s], nodes)
