"""What a page about a layer graph says of each operator: bytes that it allocates and keeps for backward, and what dies
after it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from memsim.framework.model import Model
from memsim.framework.rewriting import rewrite
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.operators import KINDS
from memsim.units import size

# the one input of a decoder layer that is each layer's own; the others are the same for all layers
HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Facts:
    """One operator. Bytes as requested of the allocator, before it rounds; parameters are never in `keeps`."""

    op: Operator
    view: bool  # all its results lie in storages of its operands
    allocates: int
    keeps: int  # of every storage that it keeps for backward
    adds: int  # of those that the layer itself has to keep and no earlier operator keeps: these add up to `kept`
    parameters: int  # that it reads
    flops: float  # forward


def is_view(op: Operator) -> bool:
    """Whether an operator makes no storage: a view, a transpose, a slice, an expand."""
    read = {spec.storage for spec in op.inputs}
    return bool(op.outputs) and all(out.storage in read for out in op.outputs)


def shared(graph: LayerGraph) -> set[int]:
    """Storages that a block keeps without owning them: parameters, and inputs that it shares with the other layers."""
    return {spec.storage for spec in graph.parameters.values()} | {
        spec.storage for name, spec in graph.inputs.items() if name != HIDDEN
    }


def kept(graph: LayerGraph) -> int:
    """Bytes that the block keeps for backward, each storage once, without parameters and without inputs that all layers
    share.
    """
    saved = {storage for op in graph.operators for storage in op.saved}
    return sum(graph.storage_bytes[storage] for storage in saved - shared(graph))


def facts(graph: LayerGraph) -> tuple[Facts, ...]:
    """Every operator in the order of execution."""
    apart = shared(graph)
    weights = {spec.storage for spec in graph.parameters.values()}
    seen: set[int] = set()
    rows = []
    for op in graph.operators:
        saved, read = set(op.saved), {spec.storage for spec in op.inputs}
        rows.append(
            Facts(
                op,
                is_view(op),
                # its result is the last layer's
                0 if op.kind == "layers" else _total(graph, {out.storage for out in op.outputs} - read),
                _total(graph, saved - weights),
                _total(graph, saved - apart - seen),
                _total(graph, read & weights),
                KINDS[op.kind].flops(op.inputs, op.outputs, op.attrs),
            )
        )
        seen |= saved
    return tuple(rows)


def of_all_layers(model: Model) -> int:
    """Bytes that all layers together keep for backward (activations, were they not checkpointed). A first layer whose
    input takes no gradient, as with LoRA on frozen embeddings, keeps less than the others.
    """
    total = sum(kept(model.layer_graphs[kind]) for kind in model.pattern)
    for call, span in zip(calls_of(model), model.spans(), strict=False):
        if not span or call.inputs[0].requires_grad or model.inputs_require_grad:
            continue
        graph = model.layer_graphs[model.pattern[span.start]]
        old = graph.inputs[HIDDEN]
        inputs = dict(graph.inputs) | {
            HIDDEN: TensorSpec(old.value, old.storage, old.shape, old.strides, old.dtype, False)
        }
        total += kept(rewrite(graph, inputs)) - kept(graph)
    return total


def calls_of(model: Model) -> list[Operator]:
    """The operators "layers", one for each tower."""
    return [op for op in model.outer.operators if op.kind == "layers"]


def kept_by_layers(model: Model) -> frozenset[int]:
    """Storages of the outer graph that the layers keep: what a checkpoint holds, or what an operator within saves."""
    names = set(model.hold_inputs) if model.checkpointed else set()
    for graph in model.layer_graphs:
        saved = {storage for op in graph.operators for storage in op.saved}
        if not model.checkpointed:
            names |= {name for name, spec in graph.inputs.items() if spec.storage in saved}
    order = tuple(model.layer_graphs[0].inputs)
    given = [(call.attrs.get("names", order), call.inputs) for call in calls_of(model)]
    return frozenset(
        spec.storage
        for called, specs in given
        for name, spec in zip(called, specs, strict=False)  # type: ignore[call-overload]
        if name in names
    )


def storage_names(graph: LayerGraph) -> dict[int, str]:
    """What to call each storage: the input or parameter that it is, or the operator that makes it."""
    names = {spec.storage: name for name, spec in (*graph.inputs.items(), *graph.parameters.items())}
    for op in graph.operators:
        for i, out in enumerate(op.outputs):
            names.setdefault(out.storage, f"result of {op.name}" if i == 0 else f"result {i + 1} of {op.name}")
    return names


def details(graph: LayerGraph, row: Facts, names: dict[int, str], saved: Set[int]) -> list[tuple[str, list[str]]]:
    """(heading, lines) for the card of an operator. `saved` are the storages that backward keeps,
    whoever saves them.
    """
    op = row.op
    made = {out.storage for out in op.outputs}
    read = {spec.storage for spec in op.inputs}

    def name(storage: int) -> str:
        own = storage in made and storage not in read
        text = f"its result{_which(op, storage)}" if own else names[storage]
        return f"{text}, {size(graph.storage_bytes[storage])}{' (a parameter)' if storage in weights else ''}"

    weights = {spec.storage for spec in graph.parameters.values()}
    rows: list[tuple[str, list[str]]] = [("reads", [f"{names[spec.storage]}: {layout(spec)}" for spec in op.inputs])]
    rows.append(
        (
            "makes a view" if row.view else "allocates",
            [f"{layout(out)}{'' if row.view else f', {size(out.nbytes)}'}" for out in op.outputs],
        )
    )
    rows.append(("keeps for backward", [name(storage) for storage in op.saved]))
    rows.append(("frees after it", [name(storage) for storage in op.drops if storage not in saved]))
    rows.append(("Python lets go of, backward keeps", [name(storage) for storage in op.drops if storage in saved]))
    rows.append(("parameters", [size(row.parameters)] if row.parameters else []))
    rows.append(("forward", [flop_words(row.flops)] if row.flops else []))
    return [(heading, lines) for heading, lines in rows if lines]


def layout(spec: TensorSpec) -> str:
    """A tensor's dtype, shape and strides in elements: "bf16 [1, 1024, 8192] (strides 8388608, 8192, 1)"."""
    strides = f" (strides {', '.join(map(str, spec.strides))})" if spec.strides else ""
    return f"{spec.dtype} {list(spec.shape)}{strides}"


def flop_words(flops: float) -> str:
    """Floating-point operations in the unit that fits: "137 GFLOP"."""
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP")):
        if flops >= unit:
            value = flops / unit
            return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f} {name}"
    return f"{flops:.0f} FLOP"


def _which(op: Operator, storage: int) -> str:
    number = next(i for i, out in enumerate(op.outputs) if out.storage == storage)
    return f" {number + 1}" if number else ""


def _total(graph: LayerGraph, storages: set[int]) -> int:
    return sum(graph.storage_bytes[storage] for storage in storages)
