"""Activation checkpointing: the layers that run again in backward, and the results of theirs that are kept nonetheless.
Each strategy is a function of a few lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from memsim.errors import InputError, Unsupported, nearest
from memsim.framework.model import Checkpoint, Model
from memsim.graph.layer_graph import Operator
from memsim.operators import KINDS
from memsim.run.checkpointing import Strategy

NONE, FULL = Checkpoint(), Checkpoint(how="full")

# Names that `save` may have, and the kinds of operators whose results each keeps: those that execute these operators of
# torch.ops.aten (traces/record/checkpointing.py has the list). matmul and attention are the list of torchtitan and
# PyTorch's tutorials.
SAVED: Mapping[str, frozenset[str]] = {
    "matmul": frozenset({"linear", "matmul", "mm", "baddbmm", "addmm"}),  # mm, addmm, bmm, baddbmm
    # _scaled_dot_product_{flash,efficient}_attention; flash_attn::_flash_attn_forward and _flash_attn_varlen_forward
    "attention": frozenset({"flash_attention", "efficient_attention", "flash_attn", "flash_attn_varlen"}),
    "add": frozenset({"add", "add_scalar"}),  # add.Tensor
    "cast": frozenset({"cast"}),  # _to_copy
    "cat": frozenset({"cat"}),
    "clone": frozenset({"clone", "reshape"}),  # a reshape that copies
    "dropout": frozenset({"dropout"}),  # native_dropout
    "gelu": frozenset({"gelu"}),
    "layer_norm": frozenset({"layer_norm"}),  # native_layer_norm
    "mean": frozenset({"mean"}),  # mean.dim
    "mul": frozenset({"mul", "mul_scalar", "complex_mul"}),  # mul.Tensor
    "neg": frozenset({"neg"}),
    "rsqrt": frozenset({"rsqrt"}),
    "silu": frozenset({"silu"}),
    "softmax": frozenset({"softmax"}),  # _softmax
    "square": frozenset({"square", "pow"}),  # pow.Tensor_Scalar
}
USUAL = ("matmul", "attention")


def checkpointed(model: Model, strategy: Strategy) -> Model:
    """Returns the model with its layers kept as the strategy says. Raises InputError where it does not
    suit the model.
    """
    return replace(model, checkpoints=_merged(_of_layers(model, strategy)))


def enables_input_grads(strategy: Strategy) -> bool:
    """True if transformers' switch is on, which marks the embeddings' output as requiring a gradient
    (gradient_checkpointing_enable).
    """
    return strategy not in ("none", "offload", "megatron")


def require_input_grads(model: Model) -> Model:
    """Does as enable_input_require_grads(): the embedding's output is marked as requiring a gradient, and keeps it."""
    return replace(model, inputs_require_grad=True)


def selective(model: Model, names: Iterable[str]) -> Checkpoint:
    """A layer of which the results of these operators are kept
    (torch.utils.checkpoint.create_selective_checkpoint_contexts); one that the layer lacks is nothing. Raises
    InputError.
    """
    for name in names:
        if name not in SAVED:
            raise InputError(
                f"checkpointing.save: {name!r} is no operator{nearest(name, SAVED)}; of this model's layers there are "
                f"{', '.join(operators_of(model))}"
            )
    inside = {"add", "mul"} & set(names)
    if inside and any(op.kind == "python_gelu" for graph in model.layer_graphs for op in graph.operators):
        raise Unsupported(
            f"checkpointing.save: {min(inside)} with an activation in Python, made of such operators, is not "
            "supported yet; matmul is"
        )
    checkpoint = Checkpoint(how="selective", saves=frozenset().union(*(SAVED[name] for name in names)))
    check_written_over(model, checkpoint.saves)
    return checkpoint


def check_written_over(model: Model, saves: frozenset[str]) -> None:
    """Raises InputError where a kept result is written over in place (clip_qkv). PyTorch detects this when it runs the
    layer again.

    It does not detect it for products, whose results it hands on as an `_unsafe_view` with a version of its own.
    """
    for graph in model.layer_graphs:
        made: dict[int, Operator] = {}
        for op in graph.operators:
            before = made.get(op.inputs[0].storage) if op.inputs and KINDS[op.kind].in_place else None
            if before is not None and before.kind in saves - SAVED["matmul"]:
                raise InputError(
                    f"checkpointing: {before.name} would be kept, but {op.name} writes over it (Tensor cached during "
                    "selective activation checkpoint has been "
                    "mutated); checkpointing: full runs"
                )
            made.update((out.storage, op) for out in op.outputs if out.storage not in made)


def operators_of(model: Model) -> list[str]:
    """Returns the names that `save` may have for this model's layers."""
    there = {op.kind for graph in model.layer_graphs for op in graph.operators}
    return [name for name, kinds in SAVED.items() if kinds & there]


def lacking(model: Model, strategy: Strategy) -> list[str]:
    """What the strategy saves that this model's layers do not have."""
    if isinstance(strategy, str):
        return []
    ((key, value),) = strategy.items()
    rows: list[object] = value if key == "save" else []  # type: ignore[assignment]
    if key == "plan":
        rows = [name for _, inner in value for name in lacking(model, inner)]  # type: ignore[attr-defined]
        return list(dict.fromkeys(map(str, rows)))
    return [str(name) for name in rows if name not in operators_of(model)]


def segments(layers: int, count: int) -> list[Checkpoint]:
    """Returns `count` segments, each checkpointed as one. The first ones are a layer longer where the layers do not
    divide evenly.
    """
    least, longer = divmod(layers, count)
    return [Checkpoint(least + (i < longer), "full") for i in range(count)]


def _of_layers(model: Model, strategy: Strategy) -> list[Checkpoint]:
    n = len(model.pattern)
    if isinstance(strategy, str):
        if strategy == "sqrt":  # Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost
            return segments(n, round(math.sqrt(n)))
        return [
            selective(model, set(USUAL) & set(operators_of(model)))
            if strategy == "selective"
            else Checkpoint(how=strategy)
        ] * n
    ((key, value),) = strategy.items()
    if key == "save":
        return [selective(model, value)] * n  # type: ignore[arg-type]
    if key == "plan":
        return _plan(model, value)  # type: ignore[arg-type]
    if key == "budget":
        raise Unsupported(
            "checkpointing.budget: what fits it is found by simulating; give the strategy that `memsim simulate` finds"
        )
    assert isinstance(value, int)
    if value > n and key != "every":  # with `every`, only the first layer is then checkpointed
        raise InputError(f"checkpointing.{key}: {value} is more than the model's {n} layers")
    if key == "segments":
        return segments(n, value)
    return [FULL if (i % value == 0 if key == "every" else i < value) else NONE for i in range(n)]


def _plan(model: Model, rows: list[tuple[int, Strategy]]) -> list[Checkpoint]:
    made = [checkpoint for count, strategy in rows for checkpoint in [_of_layers(model, strategy)[0]] * count]
    if len(made) != len(model.pattern):
        raise InputError(f"checkpointing.plan: its layers are {len(made)}, the model's {len(model.pattern)}")
    return made


def _merged(checkpoints: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    return () if all(c == NONE for c in checkpoints) else tuple(checkpoints)
