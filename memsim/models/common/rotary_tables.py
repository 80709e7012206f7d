"""Rotary tables: the cosines and sines of a family's RotaryEmbedding.forward."""

from __future__ import annotations

from memsim.errors import Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.tape import SET_ORDER


@module_call
def rotary_embedding(
    b: Builder,
    settings: Settings,
    dtype: str,
    position_ids: Tensor,
    head_dim: int,
    buffer: str = "",
    spread: str = "cat",
) -> tuple[Tensor, Tensor]:
    """LlamaRotaryEmbedding.forward: cos and sin of [1, S, D] in `dtype`. buffer: the frequencies' name, where it is not
    the usual one; spread: of Parts. Raises Unsupported for elements that are no pairs.
    """
    if head_dim % 2:
        raise Unsupported(f"model: heads of which {head_dim} elements turn are not supported, as they turn in pairs")
    with b.module(SET_ORDER if buffer else "rotary_emb"), b.no_grad(), b.no_autocast():
        inv_freq = b.parameter(buffer or "rotary_emb.inv_freq", (head_dim // 2,), "fp32", False)
        if settings.stack.rotary_by_product:
            return rotary_tables(b, settings, dtype, position_ids, inv_freq)
        shape = (*position_ids.shape, 1)
        freqs = b.op("mul", b.op("cast", b.op("view", position_ids, shape=shape), dtype="fp32"), inv_freq)
        emb = (
            freqs
            if spread == "once"
            else F.repeat_interleave(b, freqs, 2, -1)
            if spread == "interleaved"
            else b.op("cat", freqs, freqs)
        )
        cos = b.op("mul_scalar", b.op("cos", emb))
        sin = b.op("mul_scalar", b.op("sin", emb))
        return F.to(b, cos, dtype), F.to(b, sin, dtype)


def rotary_tables(
    b: Builder, settings: Settings, dtype: str, position_ids: Tensor, inv_freq: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs LlamaRotaryEmbedding.forward where the angles are a matrix product."""
    position_ids_expanded = b.op("cast", b.op("view", position_ids, shape=(1, *position_ids.shape)), dtype="fp32")
    freqs = F.transpose(
        b, b.op("matmul", b.op("view", inv_freq, shape=(1, *inv_freq.shape, 1)), position_ids_expanded), 1, 2
    )
    emb = b.op("cat", freqs, freqs)
    if settings.stack.rotary_scaled_after:
        cos = b.op("cos", emb)
        sin = b.op("sin", emb)
        cos = b.op("mul_scalar", cos)
        sin = b.op("mul_scalar", sin)
    else:
        cos = b.op("mul_scalar", b.op("cos", emb))
        sin = b.op("mul_scalar", b.op("sin", emb))
    return F.to(b, cos, dtype), F.to(b, sin, dtype)


release_in_slot_order(__name__)
