"""`flash_attention_2` as transformers calls it (integrations/flash_attention.py, modeling_flash_attention_utils.py),
and flash-attn's own functions.

Every function has the locals of the function that it stands for.
"""

from __future__ import annotations

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor

HALF = ("bf16", "fp16")
# Model types whose recordings with flash_attention_2 are reproduced.
HELD = frozenset(
    {
        "bert",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vit",
    }
)


def flash_attention_forward(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    p: float = 0.0,
    told_positions: bool = True,
) -> Tensor:
    """Runs flash_attention_forward: q [B, H, S, D], k [B, K, S, D], v [B, K, S, D'], a mask [B, S] where there is
    padding → [B, S, H, D'].

    p: probability of dropout; told_positions: true if the layer hands on the positions, which might be of packed
    sequences.
    """
    query = F.transpose(b, query, 1, 2)
    key = F.transpose(b, key, 1, 2)
    value = F.transpose(b, value, 1, 2)
    head_dim, v_head_dim = query.shape[-1], value.shape[-1]
    check_supported(settings, b.autocast or query.dtype, head_dim)
    if v_head_dim > head_dim:
        raise InputError(
            f"attention: flash_attention_2 pads values of {v_head_dim} elements to the {head_dim} of keys, which "
            "cannot run; sdpa and eager do"
        )
    if v_head_dim < head_dim:
        value = b.op("pad", value, to=head_dim)
    target_dtype = b.autocast if query.dtype == "fp32" else None
    attn_output = _flash_attention_forward(
        b, settings, query, key, value, attention_mask, p, target_dtype, told_positions
    )
    if v_head_dim < head_dim:
        attn_output = b.op("slice", attn_output, length=v_head_dim)
    return attn_output


def check_supported(settings: Settings, dtype: str, dim: int) -> None:
    """Raises InputError for settings that flash-attn refuses (flash_api.cpp, mha_fwd)."""
    if settings.sm < 80:
        raise InputError(
            f"attention: flash_attention_2 does not run on sm {settings.sm} (FlashAttention only supports Ampere GPUs "
            "or newer); sdpa does"
        )
    if dtype not in HALF:
        reason = "FlashAttention only support fp16 and bf16 data type"
        raise InputError(
            f"attention: flash_attention_2 does not run in {dtype} ({reason}); precision bf16, fp16, amp-bf16 and "
            "amp-fp16 do"
        )
    if settings.padded and not settings.real_tokens:
        raise InputError(
            f"batch.padding: {settings.padding} of {settings.sequence} tokens leaves none for flash_attention_2; a "
            "smaller share does"
        )
    if dim > 256:
        raise InputError(
            f"attention: flash_attention_2 takes heads of at most 256 elements, not {dim}; sdpa takes them"
        )


def _flash_attention_forward(
    b: Builder,
    settings: Settings,
    query_states: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    attention_mask: Tensor | None,
    p: float,
    target_dtype: str | None,
    told_positions: bool,
) -> Tensor:
    if target_dtype is not None:  # fa_peft_integration_check
        query_cast = F.to(b, query_states, target_dtype)
        key_cast = F.to(b, key_states, target_dtype)
        value_cast = F.to(b, value_states, target_dtype)
        query_states, key_states, value_states = query_cast, key_cast, value_cast
        del query_cast
        del key_cast
        del value_cast
    if attention_mask is not None:
        batch, sequence = attention_mask.shape
        query, key, value, cu_seqlens, indices = _upad_input(
            b, settings, query_states, key_states, value_states, attention_mask
        )
        out = flash_attn_varlen_func(b, settings, query, key, value, cu_seqlens, p)
        padded = b.op("put_rows", out, indices, rows=batch * sequence)
        result = b.op("view", padded, shape=(batch, sequence, *padded.shape[1:]))
        del padded
        del query_states
        del key_states
        del value_states
        del cu_seqlens  # an argument of forward
        del query
        del key
        del value
        del out
        del indices
        return result
    if told_positions:
        is_packed_sequence(b, settings)
    return flash_attn_func(b, query_states, key_states, value_states, p)


def is_packed_sequence(b: Builder, settings: Settings) -> None:
    """Runs _is_packed_sequence, for positions that turn out not to be packed."""
    sequence = settings.sequence
    if settings.batch != 1 or sequence == 1:
        return
    with b.no_grad():
        arange = F.create(b, "arange", (sequence,), "int64")
        first = b.op("reduce_all", arange, label="position_ids.min")
        increasing_position_sequences = b.op("add", arange, first, label="increasing_position_sequences")
        del arange
        del first
        difference = F.create(b, "difference", (1, sequence), "int64")
        distance = F.create(b, "abs", (1, sequence), "int64")
        del difference
        total = b.op("reduce_all", distance, label="sum")
        del distance
        packed = b.op("cast", total, dtype="bool", label="bool")
        del total
        del increasing_position_sequences
        del packed  # the result that is returned


def _upad_input(
    b: Builder, settings: Settings, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns queries, keys and values [T, H, D] without the padding, the places where sequences begin among them, and
    the places where tokens were.
    """
    with b.no_grad():
        indices_k, cu_seqlens_k = _get_unpad_data(b, settings, attention_mask)
    key_layer = _index_first_axis(b, key_layer, indices_k)
    value_layer = _index_first_axis(b, value_layer, indices_k)
    query_layer = _index_first_axis(b, query_layer, indices_k)
    return query_layer, key_layer, value_layer, cu_seqlens_k, indices_k


def _get_unpad_data(b: Builder, settings: Settings, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    seqlens_in_batch = b.op("count_rows", attention_mask, label="seqlens_in_batch")
    indices = b.op("nonzero", attention_mask, count=settings.batch * settings.real_tokens)
    longest = b.op("reduce_all", seqlens_in_batch)
    del longest
    cu_seqlens = b.op("scan", seqlens_in_batch, label="cumsum")
    cu_seqlens, before = F.create(b, "pad", (settings.batch + 1,), "int32"), cu_seqlens
    del before
    return indices, cu_seqlens


def _index_first_axis(b: Builder, tensor: Tensor, indices: Tensor) -> Tensor:
    batch, sequence, *rest = tensor.shape
    reshaped_tensor = F.reshape(b, tensor, batch * sequence, *rest)
    return b.op("index", reshaped_tensor, indices)


def flash_attn_func(b: Builder, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """Runs FlashAttnFunc.apply: [B, S, H, D]."""
    return _apply(b, "flash_attn", (q, k, v), _padded_heads(b, q, k, v), p=p)


def flash_attn_varlen_func(
    b: Builder, settings: Settings, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, p: float
) -> Tensor:
    """Runs FlashAttnVarlenFunc.apply: [T, H, D]."""
    attrs = {"p": p, "longest": settings.real_tokens, "sequences": settings.batch}
    return _apply(b, "flash_attn_varlen", (q, k, v, cu_seqlens), _padded_heads(b, q, k, v), **attrs)


def _padded_heads(b: Builder, *heads: Tensor) -> list[Tensor]:
    """Returns the tensors with heads padded to a multiple of 8 elements. Returns an empty list where they are a
    multiple.
    """
    dim = heads[0].shape[-1]
    with b.no_grad():
        return [b.op("pad", x, to=-(-dim // 8) * 8) for x in heads] if dim % 8 else []


def _apply(b: Builder, kind: str, inputs: tuple[Tensor, ...], padded: list[Tensor], **attrs: object) -> Tensor:
    """Runs a function of flash-attn. Its locals die in their order: padded heads, then the kernel's outputs beside its
    result.
    """
    out, *hidden = b.run(kind, *inputs, *padded, **attrs)
    while padded:
        padded.pop(0)
    while hidden:
        hidden.pop(0)
    return out


release_in_slot_order(__name__)
