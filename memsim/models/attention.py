"""Attention as transformers calls it: sdpa (integrations/sdpa_attention.py) and eager (modeling_llama.eager_attention_forward)."""

from __future__ import annotations

from memsim.builder import Builder, Tensor
from memsim.errors import Unsupported
from memsim.models import functional as F
from memsim.models.config import DecoderConfig
from memsim.models.model import Settings


def attention(
    b: Builder, settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, softcap: bool = False
) -> tuple[Tensor, Tensor | None]:
    """q [B, H, S, D], k and v [B, K, S, D] → [B, S, H, D], and the attention weights where they exist."""
    with b.core(query, key, value, mask):
        if settings.attention == "eager":
            return eager(b, settings, query, key, value, mask, groups, softcap)
        return sdpa(b, settings, query, key, value, mask, groups), None


def attend(
    b: Builder, config: DecoderConfig, settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: bool, softcap: bool = False
) -> tuple[Tensor, Tensor | None]:
    """How every decoder's attention ends: attention, the heads joined, o_proj."""
    batch, heads, sequence, dim = query.shape
    attn_output, attn_weights = attention(b, settings, query, key, value, mask, config.groups, softcap)
    attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, heads * dim))
    attn_output = F.linear(b, attn_output, "o_proj", config.hidden_size, settings.dtype, bias)
    return attn_output, attn_weights


def repeat_kv(b: Builder, settings: Settings, hidden_states: Tensor, groups: int) -> Tensor:
    """[B, K, S, D] → [B, K·groups, S, D], a copy."""
    batch, heads, sequence, dim = hidden_states.shape
    if groups == 1:
        return hidden_states
    hidden_states = b.op("view", F.index(b, settings, hidden_states, 0, 1), shape=(batch, heads, 1, sequence, dim))  # [:, :, None, :, :]
    hidden_states = F.index(b, settings, hidden_states, 3, 4)
    hidden_states = b.op("expand", hidden_states, shape=(batch, heads, groups, sequence, dim))
    return F.reshape(b, hidden_states, batch, heads * groups, sequence, dim)


def lacks_wide_heads(sm: int) -> bool:
    """Devices on which FlashAttention's backward has no kernel for heads of 193 to 224 (sdp_utils.cpp, check_requires_grad_and_head_dim_gt192…)."""
    return 86 <= sm <= 89 or sm in (120, 121)


def sdpa(b: Builder, settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, p: float = 0.0) -> Tensor:
    """sdpa_attention_forward: grouped heads stay grouped where the kernel takes them. p: probability of dropout."""
    if settings.sm < 80 and (b.autocast or query.dtype) == "bf16":
        raise Unsupported(f"sm: {settings.sm} with bf16 and attention sdpa is not supported yet; fp16 or fp32 are, 80 and later, or attention eager")
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise Unsupported(f"model.head_dim: {query.shape[-1]} with attention sdpa is not supported yet; multiples of 8 up to 256 are")
    if mask is not None or settings.stack.sdpa_repeats_heads:
        key = repeat_kv(b, settings, key, groups)
        value = repeat_kv(b, settings, value, groups)
    if settings.stack.sdpa_repeats_heads:
        query, key, value = F.contiguous(b, query), F.contiguous(b, key), F.contiguous(b, value)
    if mask is not None:
        mask = b.op("slice", mask, length=query.shape[2]) if mask.shape[-1] != query.shape[2] else mask
        attn_output = b.op("efficient_attention", query, key, value, mask, p=p)
    else:
        half = (b.autocast or query.dtype) in ("bf16", "fp16")
        kept = b.grad_enabled and any(x.spec.requires_grad for x in (query, key, value))
        flash = half and settings.sm >= 80 and not (kept and lacks_wide_heads(settings.sm) and 192 < query.shape[-1] <= 224)
        attn_output = b.op("flash_attention" if flash else "efficient_attention", query, key, value, p=p)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output


def eager(
    b: Builder, settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, softcap: bool = False
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward."""
    key_states = repeat_kv(b, settings, key, groups)
    value_states = repeat_kv(b, settings, value, groups)
    attn_weights = b.op("mul_scalar", F.matmul(b, query, F.transpose(b, key_states, 2, 3)))
    if softcap:
        attn_weights = b.op("mul_scalar", attn_weights)
        attn_weights = b.op("tanh", attn_weights)
        attn_weights = b.op("mul_scalar", attn_weights)
    if mask is not None:
        mask = b.op("slice", mask, length=key_states.shape[2]) if mask.shape[-1] != key_states.shape[2] else mask
        attn_weights = b.op("add", attn_weights, mask)
    attn_weights = F.to(b, F.softmax(b, attn_weights, "fp32"), query.dtype)
    attn_output = F.matmul(b, attn_weights, value_states)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output, attn_weights
