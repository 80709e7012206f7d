"""Saved tensors in pinned host memory (torch.autograd.graph.save_on_cpu(pin_memory=True)). They are packed when an
operator saves them, and copied back for its backward.

Every saved tensor travels by itself, weights too, and as often as it is saved. The copies run on the stream that
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memsim.graph.layer_graph import Operator, TensorSpec
from memsim.graph.layout import contiguous, is_contiguous
from memsim.machine.storages import Machine
from memsim.operators import KINDS

SEEDED = ("flash_attention", "efficient_attention")


def saved_tensors(op: Operator) -> tuple[TensorSpec, ...]:
    """Returns the tensors that an operator saves, in the order of `op.saved`."""
    there: dict[int, list[TensorSpec]] = {}
    for spec in (*op.inputs, *op.outputs):
        there.setdefault(spec.storage, []).append(spec)
    return tuple(there[s].pop(0) if len(there[s]) > 1 else there[s][0] for s in op.saved)


def saves_transposed(op: Operator) -> bool:
    """True if what the operator saves of its weight is a transposed view: F.linear(x, w) saves w.t()."""
    return op.kind == "linear" or (op.kind == "grouped_linear" and not op.attrs.get("stacked_in_first"))


def saved_for_nothing(op: Operator) -> tuple[TensorSpec, ...]:
    """Tensors copied to the host although backward never reaches this operator. The layer graph takes it for one
    without a node.
    """
    packs: tuple[int, ...] = op.attrs.get("packs", ())  # type: ignore[assignment]
    return tuple(op.inputs[i] for i in packs)


def to_host(machine: Machine, op: Operator, saved: Sequence[TensorSpec], results: bool) -> None:
    """Runs packed.copy_(tensor) of the saved operands, before the operator runs, or of the saved results, after it. A
    function written in Python saves all of them after it. Tensors that are not contiguous are made so on the device
    first (ATen/native/cuda/Copy.cu, copy_requires_temporaries).
    """
    made = {spec.storage for spec in op.outputs} - {spec.storage for spec in op.inputs}
    late = KINDS[op.kind].in_python(op.attrs)
    for spec in saved:
        if (late or spec.storage in made) == results:
            shape, strides = spec.shape, spec.strides
            if saves_transposed(op) and spec.storage == op.inputs[1].storage:
                shape, strides = (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2])
            if not is_contiguous(shape, strides):
                machine.scratch(spec.nbytes)
            machine.copied(spec.nbytes)


def from_host(machine: Machine, op: Operator, spec: TensorSpec) -> int:
    """Runs packed.to(device): a new storage, except for a tensor that was on the host when it was saved."""
    if machine.platform.software.attention_seeds_on_host and op.kind in SEEDED and spec.dtype == "int64":
        return machine.alloc(0)
    machine.copied(spec.nbytes)
    return machine.alloc(spec.nbytes)


def laid_out(op: Operator, tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Returns the operator's tensors as they are after the journey: contiguous. A weight keeps its layout, for a
    product knows from forward how its gradient is laid out.
    """
    weight = op.inputs[1].storage if saves_transposed(op) else -1
    return tuple(
        replace(spec, strides=contiguous(spec.shape)) if spec.storage in op.saved and spec.storage != weight else spec
        for spec in tensors
    )
