"""Mixtures of experts as transformers executes them: `grouped_mm` of integrations/moe.py, which it takes where no other
implementation is requested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memsim.errors import Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor

Gate = Callable[[Builder, Tensor], Tensor]  # takes the result of gate_up_proj [S, 2·I] and returns [S, I]


@dataclass(frozen=True)
class Layout:
    """How experts are stored, and the gate between their products (use_experts_implementation)."""

    gate: Gate
    transposed: bool = False  # weights are [E, in, out] instead of [E, out, in]
    bias: bool = False


def router(
    b: Builder, settings: Settings, hidden_states: Tensor, experts: int, top_k: int, normalized: bool, lowered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs MixtralTopKRouter, and Qwen3MoeTopKRouter with `lowered`. Returns logits [T, E], weights and indices of the
    chosen experts [T, k].

    `normalized`: the weights are divided by their sum. `lowered`: they are cast to the dtype of the logits.
    """
    name = ".".join([*b.path, "gate.weight"])
    b.parameter(name, (experts, hidden_states.shape[-1]), settings.dtype, True)
    with b.module("gate"), b.wrapped(name):
        return router_forward(b, hidden_states, b.read(name), top_k, normalized, lowered)


@module_call
def router_forward(
    b: Builder, hidden_states: Tensor, weight: Tensor, top_k: int, normalized: bool, lowered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the forward of both routers. `weight` is read first."""
    hidden_states = b.op("view", hidden_states, shape=hidden_states.shape)
    router_logits = b.op("linear", hidden_states, weight)
    router_probs = F.softmax(b, router_logits, "fp32") if lowered else b.op("softmax", F.to(b, router_logits, "fp32"))
    router_top_value, router_indices = b.run("topk", router_probs, k=top_k)
    if normalized:
        router_top_value = b.op("divide_", router_top_value, b.op("sum", router_top_value, dim=-1, keepdim=True))
    if lowered:
        router_top_value = F.to(b, router_top_value, router_logits.dtype)
    return router_logits, router_top_value, router_indices


def experts_call(
    b: Builder,
    settings: Settings,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    experts: int,
    inner: int,
    act: str,
) -> Tensor:
    """Runs MixtralExperts and similar modules, with weights gate_up_proj [E, 2·I, H] and down_proj [E, H, I]:
    hidden_states [T, H] → [T, H].
    """
    return experts_of(
        b,
        settings,
        hidden_states,
        top_k_index,
        top_k_weights,
        experts,
        inner,
        Layout(lambda b, x: apply_gate(b, x, act)),
    )


def experts_of(
    b: Builder,
    settings: Settings,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    experts: int,
    inner: int,
    layout: Layout,
) -> Tensor:
    """Runs a module of experts with any layout of its weights."""
    hidden, dtype = hidden_states.shape[-1], settings.dtype
    gate_up_proj, down_proj = (".".join([*b.path, "experts", name]) for name in ("gate_up_proj", "down_proj"))
    check_alignment(settings, hidden, inner)
    for name, out, size in ((gate_up_proj, 2 * inner, hidden), (down_proj, hidden, inner)):
        b.parameter(name, (experts, size, out) if layout.transposed else (experts, out, size), dtype, True)
        if layout.transposed:
            b.in_first.add(name)
        if layout.bias:
            b.parameter(f"{name}_bias", (experts, out), dtype, True)
    with b.module("experts"), b.wrapped(down_proj, gate_up_proj):
        return grouped_mm_experts_forward(
            b, settings, hidden_states, top_k_index, top_k_weights, (gate_up_proj, down_proj), layout
        )


@module_call
def grouped_mm_experts_forward(
    b: Builder,
    settings: Settings,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    names: tuple[str, str],
    layout: Layout,
) -> Tensor:
    """Runs grouped_mm_experts_forward. `names` are the paths of the two weights."""
    tokens, hidden_dim = hidden_states.shape
    num_top_k = top_k_index.shape[-1]
    rows = tokens * num_top_k
    sample_weights = F.reshape(b, top_k_weights, rows)
    expert_ids = F.reshape(b, top_k_index, rows)
    expert_ids_g, perm = b.run("sort", expert_ids)
    selected_hidden_states_g = b.op("index", hidden_states, F.create(b, "floor_divide", (rows,), "int64"))
    sample_weights_g = b.op("index", sample_weights, perm)
    histc_input = b.op("cast", expert_ids_g, dtype="int32")
    tokens_per_expert = F.create(b, "histc", (b.weights[names[0]].shape[0],), "int32")
    offsets = b.op("scan", tokens_per_expert, label="cumsum")
    selected_weights = b.read(names[0])
    selected_biases = b.op("index", b.weights[f"{names[0]}_bias"], expert_ids_g) if layout.bias else None
    proj_out = grouped_linear(
        b, settings, selected_hidden_states_g, selected_weights, offsets, selected_biases, num_top_k, layout.transposed
    )
    proj_out = layout.gate(b, proj_out)
    selected_weights = b.read(names[1])
    selected_biases = b.op("index", b.weights[f"{names[1]}_bias"], expert_ids_g) if layout.bias else None
    proj_out = grouped_linear(
        b, settings, proj_out, selected_weights, offsets, selected_biases, num_top_k, layout.transposed
    )
    weighted_out = b.op("mul", proj_out, b.op("view", sample_weights_g, shape=(rows, 1)))
    inv_perm = F.create(b, "empty_like", (rows,), "int64")
    arange = F.create(b, "arange", (rows,), "int64")
    del arange
    # sample_weights and expert_ids are views of the caller's tensors, which outlive this function
    held = [expert_ids_g, perm, selected_hidden_states_g, sample_weights_g, histc_input, tokens_per_expert, offsets]
    held += [proj_out] if selected_biases is None else [selected_biases, proj_out]
    with b.locals(*held, weighted_out, inv_perm):
        del held
        weighted_out = b.op("index", weighted_out, inv_perm)
    final_hidden_states = b.op("sum", b.op("view", weighted_out, shape=(tokens, num_top_k, hidden_dim)), dim=1)
    return F.to(b, final_hidden_states, hidden_states.dtype)


def apply_gate(b: Builder, gate_up_out: Tensor, act: str) -> Tensor:
    """Runs _default_apply_gate."""
    gate, up = b.run("chunk", gate_up_out, parts=2)
    return b.op("mul", b.op(act, gate), up)


def grouped_linear(
    b: Builder,
    settings: Settings,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    top_k: int,
    transposed: bool,
) -> Tensor:
    """Runs _grouped_linear: x in the weights' dtype, whatever autocast says."""
    experts_hit = hit(settings.routing, weight.shape[0], top_k, x.shape[0])
    attrs = {
        "experts_hit": experts_hit,
        "fallback": settings.sm < 80,
        **({"stacked_in_first": True} if transposed else {}),
    }
    out = b.op("grouped_linear", F.to(b, x, weight.dtype), weight, offsets, **attrs)
    return out if bias is None else b.op("add_", out, bias)


def hit(routing: str | float, experts: int, top_k: int, rows: int) -> int:
    """Number of experts that receive a token. `rows` counts the choices of all tokens, top_k for each.

    `balanced`: every expert, as long as there are rows. `2.0`: the same, but the busiest gets twice the average.
    `worst`: all tokens choose the same top_k. `zeros`: none, as counted by a device whose memory reads as zero.
    """
    if routing == "zeros":
        return 0
    if routing == "worst":
        return min(top_k, rows)
    busiest = min(-(-rows // experts) if isinstance(routing, str) else -(-rows * routing // experts), rows // top_k)
    return min(experts, int(rows - busiest + 1))


def check_alignment(settings: Settings, *sizes: int) -> None:
    """Raises Unsupported where torch's grouped product refuses the weights, as their rows are not multiples of 16
    bytes.
    """
    multiple = 4 if settings.dtype == "fp32" else 8
    for size in sizes:
        if settings.sm >= 80 and size % multiple:
            raise Unsupported(
                f"model: experts with {size} columns cannot run: torch's grouped_mm takes multiples of {multiple} in "
                f"{settings.dtype}"
            )


release_in_slot_order(__name__)
