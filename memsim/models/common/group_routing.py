"""Routers that choose groups of experts before experts: DeepseekV3TopkRouter, which Glm4MoeTopkRouter is too, and
DeepseekV2TopkRouter.

The loss is not a function of the choice, so the autograd graph of the choice dies with its tensors. Those operators are
`dead`. Names here hold the tensors that their nodes hold until then.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor


@dataclass(frozen=True)
class Routing:
    """The numbers of experts and groups, the numbers of each that a token takes, and a flag for weights that are
    divided by their sum.
    """

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1
    normalized: bool = False
    limited: bool = True  # the choice is limited to groups


def gate(
    b: Builder, settings: Settings, hidden_states: Tensor, routing: Routing, bias_dtype: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits [T, E], weights and indices of the chosen experts [T, k]. bias_dtype: dtype of the buffer that
    corrects the choice; None for DeepSeek-V2's router.
    """
    name = ".".join([*b.path, "gate.weight"])
    b.parameter(name, (routing.experts, hidden_states.shape[-1]), settings.dtype, True)
    with b.module("gate"), b.wrapped(name):
        if bias_dtype is None:
            return softmax_router(b, hidden_states, name, routing)
        bias = b.parameter(".".join([*b.path, "e_score_correction_bias"]), (routing.experts,), bias_dtype, False)
        return sigmoid_router(b, hidden_states, name, bias, routing)


def logits_of(b: Builder, hidden_states: Tensor, name: str) -> Tensor:
    """Runs F.linear(hidden_states.type(torch.float32), self.weight.type(torch.float32))."""
    hidden_states = b.op(
        "view", hidden_states, shape=(hidden_states.spec.elements // hidden_states.shape[-1], hidden_states.shape[-1])
    )
    return b.op("linear", F.to(b, hidden_states, "fp32"), F.to(b, b.read(name), "fp32"))


@module_call
def sigmoid_router(
    b: Builder, hidden_states: Tensor, name: str, bias: Tensor, routing: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs DeepseekV3TopkRouter.forward."""
    router_logits = logits_of(b, hidden_states, name)
    scores = b.op("sigmoid", router_logits)
    scores_for_choice = b.op("add", scores, bias, dead=True)
    of_groups, held = b.run("topk", grouped(b, scores_for_choice, routing), k=2, dead=True)
    b.unkept(held)
    group_scores = b.op("sum", of_groups, dim=-1, dead=True)
    del of_groups
    group_idx, group_mask, score_mask = mask_of_groups(b, group_scores, routing)
    mask = inverse(b, score_mask)
    scores_for_choice, before = b.op("masked_fill", scores_for_choice, mask, dead=True), scores_for_choice
    b.unkept(mask)
    del before
    topk_indices = indices(b, scores_for_choice, routing.top_k)
    topk_weights = b.op("gather", scores, topk_indices)
    if routing.normalized:
        denominator = b.op("add_scalar", b.op("sum", topk_weights, dim=-1, keepdim=True))
        topk_weights = b.op("divide_", topk_weights, denominator)
    topk_weights = b.op("mul_scalar", topk_weights)
    del scores
    del mask
    del scores_for_choice
    del held
    del group_scores
    del group_idx
    del group_mask
    del score_mask
    return router_logits, topk_weights, topk_indices


@module_call
def softmax_router(b: Builder, hidden_states: Tensor, name: str, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Runs DeepseekV2TopkRouter.forward."""
    router_logits = logits_of(b, hidden_states, name)
    scores = F.softmax(b, router_logits, "fp32")
    if not routing.limited:
        topk_weights, topk_indices = b.run("topk", scores, k=routing.top_k)
        topk_weights = b.op("mul_scalar", topk_weights)
        return router_logits, topk_weights, topk_indices
    group_scores, held = b.run("largest_in_group", grouped(b, scores, routing), dead=True)
    b.unkept(held)
    group_idx, group_mask, score_mask = mask_of_groups(b, group_scores, routing)
    scores = b.op("masked_fill", scores, inverse(b, score_mask))
    topk_weights, topk_indices = b.run("topk", scores, k=routing.top_k)
    topk_weights = b.op("mul_scalar", topk_weights)
    del scores
    del held
    del group_scores
    del group_idx
    del group_mask
    del score_mask
    return router_logits, topk_weights, topk_indices


def grouped(b: Builder, scores: Tensor, routing: Routing) -> Tensor:
    """Runs scores.view(-1, groups, experts in a group)."""
    return b.op("view", scores, shape=(scores.shape[0], routing.groups, routing.experts // routing.groups), dead=True)


def mask_of_groups(b: Builder, group_scores: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the chosen groups [T, k], a mask of groups [T, G], and that of their experts [T, E], in the dtype of the
    scores.
    """
    tokens, groups = group_scores.shape
    group_idx = indices(b, group_scores, routing.top_groups)
    group_mask = F.create(b, "zeros_like", (tokens, groups), group_scores.dtype)
    score_mask = b.op("view", group_mask, shape=(tokens, groups, 1))
    score_mask = b.op("expand", score_mask, shape=(tokens, groups, routing.experts // groups))
    score_mask = F.reshape(b, score_mask, tokens, routing.experts)
    return group_idx, group_mask, score_mask


def indices(b: Builder, scores: Tensor, k: int) -> Tensor:
    """Runs torch.topk(scores, k, sorted=False)[1]."""
    values, chosen = b.run("topk", scores, k=k, dead=True)
    del values
    return chosen


def inverse(b: Builder, mask: Tensor) -> Tensor:
    """Runs ~mask.bool()."""
    true = b.op("cast", mask, dtype="bool")
    result = F.create(b, "bitwise_not", mask.shape, "bool")
    del true
    return result


release_in_slot_order(__name__)
