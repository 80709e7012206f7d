"""Attention where no fused kernel can run. PyTorch composes it of operators
(aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math), in fp32, with the scores and
their softmax whole in memory.
"""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor


def math_attention(
    b: Builder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    p: float = 0.0,
    watched: bool = False,
) -> Tensor:
    """Runs attention: q [B, H, S, D], k and v [B, K, S, D], mask [B or 1, 1, S, S], bool or of the dtype of q → [B, H,
    S, D]. p: probability of dropout.

    watched: a TorchDispatchMode is on, as in a selective checkpoint. Then the mask is added into a new tensor
    (areAnyTensorSubclassLike).

    Autocast casts the arguments and then stays out. Locals die in C++'s order, the last declared first.
    """
    query, key, value, *given = b.lower(query, key, value, *(() if mask is None else (mask,)))
    origin = query.dtype
    mask = None if mask is None else b.op("bias_of_mask", given[0], dtype=origin) if mask.dtype == "bool" else given[0]
    with b.no_autocast():
        query_acc = F.to(b, query, "fp32")
        key_acc = F.to(b, key, "fp32")
        value_acc = F.to(b, value, "fp32")
        attn_mask = mask
        scaled = b.op("scale", query_acc)
        if causal:
            length, width = query.shape[2], key.shape[2]
            attn_mask = b.op("tril", F.create(b, "ones", (length, width), "bool"))
            attn_mask = b.op("bias_of_mask", attn_mask, dtype="fp32")
        groups = query.shape[1] // key.shape[1]
        key_expanded = F.repeat_interleave(b, key_acc, groups, 1) if groups > 1 else key_acc
        value_expanded = F.repeat_interleave(b, value_acc, groups, 1) if groups > 1 else value_acc
        attn = F.matmul(b, scaled, b.op("scale", F.transpose(b, key_expanded, 2, 3)))
        if attn_mask is not None:
            attn = b.op("add" if watched else "add_", attn, attn_mask)
        attn = b.op("safe_softmax", attn)
        if p:
            attn = b.op("dropout", attn, p=p)
        # sdpa does not return these
        weights = attn if attn.dtype == origin else b.op("cast", attn, dtype=origin, dead=True)
        result = F.to(b, F.matmul(b, attn, value_expanded), origin)
        del attn
        del key_expanded  # the two are a std::tuple, which goes from its first on
        del value_expanded
        del scaled
        del attn_mask
        del value_acc
        del key_acc
        del query_acc
        del weights
        del mask
    return result


release_in_slot_order(__name__)
