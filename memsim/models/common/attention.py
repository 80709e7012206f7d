"""Attention as transformers calls it: sdpa (integrations/sdpa_attention.py), eager
(modeling_llama.eager_attention_forward), flash_attention.py.
"""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig
from memsim.models.common.flash_attention import flash_attention_forward
from memsim.models.common.math_attention import math_attention


def attention(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    groups: int,
    softcap: bool = False,
    p: float = 0.0,
    offset: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Runs attention: q and k [B, H or K, S, D], v [B, K, S, D'] → [B, S, H, D'], and the attention weights where they
    exist.

    p: probability of dropout; offset: elements ahead of v in its storage.
    """
    with b.core(query, key, value, mask):
        if settings.attention == "eager":
            return eager(b, settings, query, key, value, mask, groups, softcap, p)
        if settings.attention == "flash_attention_2":
            return flash_attention_forward(b, settings, query, key, value, mask, p), None
        return sdpa(b, settings, query, key, value, mask, groups, p, offset), None


def query_key_value(
    b: Builder, config: DecoderConfig, hidden_states: Tensor, dtype: str, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Projects hidden states [B, S, W] to queries [B, H, S, D], keys and values [B, K, S, D]."""
    query_states = F.heads(b, hidden_states, "q_proj", config.num_attention_heads, config.head_dim, dtype, bias)
    key_states = F.heads(b, hidden_states, "k_proj", config.num_key_value_heads, config.head_dim, dtype, bias)
    value_states = F.heads(b, hidden_states, "v_proj", config.num_key_value_heads, config.head_dim, dtype, bias)
    return query_states, key_states, value_states


def attend(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: bool,
    softcap: bool = False,
    name: str = "o_proj",
    offset: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Runs the end of every decoder's attention: attention, the joining of heads, o_proj."""
    batch, heads, sequence, _ = query.shape
    dim = value.shape[-1]
    attn_output, attn_weights = attention(
        b, settings, query, key, value, mask, config.groups, softcap, config.attention_dropout, offset
    )
    attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, heads * dim))
    attn_output = F.linear(b, attn_output, name, config.hidden_size, settings.dtype, bias)
    return attn_output, attn_weights


def repeat_kv(b: Builder, settings: Settings, hidden_states: Tensor, groups: int) -> Tensor:
    """Runs repeat_kv: [B, K, S, D] → [B, K·groups, S, D], a copy."""
    batch, heads, sequence, dim = hidden_states.shape
    if groups == 1:
        return hidden_states
    # [:, :, None, :, :]
    hidden_states = b.op("view", F.index(b, settings, hidden_states, 0, 1), shape=(batch, heads, 1, sequence, dim))
    hidden_states = F.index(b, settings, hidden_states, 3, 4)
    hidden_states = b.op("expand", hidden_states, shape=(batch, heads, groups, sequence, dim))
    return F.reshape(b, hidden_states, batch, heads * groups, sequence, dim)


def lacks_wide_heads(sm: int) -> bool:
    """True for devices on which FlashAttention's backward has no kernel for heads of 193 to 224 (sdp_utils.cpp,
    check_requires_grad_and_head_dim_gt192…).
    """
    return 86 <= sm <= 89 or sm in (120, 121)


def sdpa(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    groups: int,
    p: float = 0.0,
    offset: int = 0,
    causal: bool = True,
) -> Tensor:
    """Runs sdpa_attention_forward: grouped heads stay grouped where the kernel takes them.

    p: probability of dropout; offset: as in `attention`; causal: where no mask says otherwise.
    """
    sequence, joined = query.shape[2], query.shape[1]
    repeats = settings.stack.sdpa_repeats_heads or mask is not None or query.shape[-1] > 256  # use_gqa_in_sdpa
    # pack_gqa: a group's queries take the place of the sequence
    if repeats and sequence == 1 and groups > 1 and not settings.stack.sdpa_packs_no_groups:
        query = F.reshape(b, query, query.shape[0], joined // groups, groups, query.shape[-1])
    elif repeats:
        key = repeat_kv(b, settings, key, groups)
        value = repeat_kv(b, settings, value, groups)
    if settings.stack.sdpa_repeats_heads:
        query, key, value = F.contiguous(b, query), F.contiguous(b, key), F.contiguous(b, value)
    if mask is not None:
        mask = b.op("slice", mask, length=key.shape[2]) if mask.shape[-1] != key.shape[2] else mask
    requires_grad = b.grad_enabled and any(x.spec.requires_grad for x in (query, key, value))
    back_end = chosen(
        settings, b.autocast or query.dtype, (query.shape[-1], value.shape[-1]), mask is not None, requires_grad, offset
    )
    # check_last_dim_stride_equals_1_dense, even where there is one key
    if mask is not None and mask.spec.strides[-1] != 1:
        back_end = "math"
    if back_end == "math":
        attn_output = math_attention(
            b, query, key, value, mask, causal and mask is None and sequence > 1, p, settings.watched
        )
    elif back_end == "flash" and query.shape[-1] % 8:
        attn_output = padded_flash(b, query, key, value, p, causal)
    elif mask is not None:
        attn_output = masked_efficient(b, query, key, value, mask, p, causal)
    else:
        attn_output = b.op(f"{back_end}_attention", query, key, value, p=p, causal=causal)
    if attn_output.shape[2] != sequence:
        attn_output = F.reshape(b, attn_output, attn_output.shape[0], joined, sequence, attn_output.shape[-1])
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output


def chosen(
    settings: Settings, dtype: str, dims: tuple[int, int], masked: bool, requires_grad: bool, offset: int = 0
) -> str:
    """Returns the back end that torch takes for heads of these sizes in elements (in queries and keys, in values):
    "flash", "efficient" or "math", the first that can (sdp_utils.cpp, select_sdp_backend). offset: elements ahead of
    the values in their storage.
    """
    sm, half = settings.sm, dtype in ("bf16", "fp16")
    dim, dim_v = dims
    if (
        half
        and sm >= 80
        and not masked
        and dim == dim_v
        and dim <= 256
        and not (requires_grad and lacks_wide_heads(sm) and 192 < dim <= 224)
    ):
        return "flash"
    # The memory-efficient kernels need rows aligned as their matrix products do (minimum_gemm_alignment), and support
    # bf16 from sm 80 on.
    alignment = 8 if half else 4 if sm >= 80 else 1
    aligned = not (dim % alignment or dim_v % alignment or (sm >= 80 and offset % alignment))
    return "efficient" if aligned and not (dtype == "bf16" and sm < 80) else "math"


def masked_efficient(
    b: Builder, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float, causal: bool = True
) -> Tensor:
    """Runs the memory-efficient kernel, which reads numbers in rows that begin at multiples of 8 (attention.cpp,
    convert_boolean_attn_mask, preprocess_mask).
    """
    batch, heads, sequence, _ = query.shape
    keys = key.shape[2]
    query, key, value, given = b.lower(query, key, value, mask)
    with b.no_autocast():
        mask = b.op("bias_of_mask", given, dtype=query.dtype) if given.dtype == "bool" else given
        if any(stride % 8 for stride in mask.spec.strides[:-1]):
            mask = b.op("pad", mask, to=keys + 8 - keys % 8)
            mask = b.op("slice", mask, length=keys)
        mask = b.op("expand", mask, shape=(batch, heads, sequence, keys))
        out = b.op("efficient_attention", query, key, value, mask, p=p, causal=causal)
        del mask
    return out


def padded_flash(b: Builder, query: Tensor, key: Tensor, value: Tensor, p: float, causal: bool = True) -> Tensor:
    """Runs FlashAttention with heads padded to a multiple of 8 elements (attention.cpp, pad_last_dim and
    post_process_flash_output).
    """
    dim = query.shape[-1]
    query, key, value = b.lower(query, key, value)
    with b.no_autocast():
        query_padded = b.op("pad", query, to=-(-dim // 8) * 8)
        key_padded = b.op("pad", key, to=-(-dim // 8) * 8)
        value_padded = b.op("pad", value, to=-(-dim // 8) * 8)
        out = b.op(
            "slice", b.op("flash_attention", query_padded, key_padded, value_padded, p=p, causal=causal), length=dim
        )
        del value_padded
        del key_padded
        del query_padded
    return out


def eager(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    groups: int,
    softcap: bool = False,
    p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Runs eager_attention_forward."""
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
    if p:
        attn_weights = b.op("dropout", attn_weights, p=p)
    attn_output = F.matmul(b, attn_weights, value_states)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output, attn_weights


release_in_slot_order(__name__)
