"""Causal masks as transformers made them before masking_utils: numbers instead of booleans (transformers 4.48:
models/llama/modeling_llama.py).

Every function has the locals of the function in transformers that it stands for.
"""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig


def dense_mask(b: Builder, config: DecoderConfig, settings: Settings, dtype: str) -> Tensor | None:
    """Runs _update_causal_mask: [B, 1, S, S + 1] in `dtype`, expanded over the batch (a view). With padding it is the
    batch's own, [B, 1, S, S].

    Returns None for sdpa, which gets is_causal, unless the sequence reaches the window or is padded.
    """
    sequence, window = settings.sequence, config.sliding_window
    inside = sequence == 1 or window is None or sequence < window
    if settings.attention == "sdpa" and inside and not settings.padded:
        return None
    with b.module("causal_mask"), b.no_grad():
        if settings.padded:
            return padded(b, config, settings, dtype, inside)
        mask, *others = square(b, config, (sequence, sequence + 1), dtype)
        while others:
            others.pop(0)
        return b.op("expand", mask, shape=(settings.batch, 1, sequence, sequence + 1))


def padded(b: Builder, config: DecoderConfig, settings: Settings, dtype: str, inside: bool) -> Tensor:
    """Does the same with an attention mask of the batch. sdpa asks first whether it is all ones, where
    that would help.
    """
    batch, sequence = settings.batch, settings.sequence
    if settings.attention == "sdpa" and inside:  # AttentionMaskConverter._ignore_causal_mask_sdpa
        every = b.op("all", F.create(b, "attention_mask.eq", (batch, sequence), "bool"))
        del every
    whole = (batch, 1, sequence, sequence)
    causal_mask, *others = square(b, config, (sequence, sequence), dtype)
    causal_mask, before = F.create(b, "clone", whole, dtype), causal_mask
    del before
    fill_padding(b, causal_mask, others)
    if settings.attention == "sdpa":  # AttentionMaskConverter._unmask_unattended
        unattended = F.create(b, "unmask_unattended.eq", whole, "bool")
        every = b.op("all_last", unattended)
        del unattended
        attended = F.create(b, "not", (batch, 1, sequence, 1), "bool")
        del every
        causal_mask, before = F.create(b, "unmask_unattended", whole, dtype), causal_mask
        del attended
        del before
    return causal_mask


def fill_padding(b: Builder, causal_mask: Tensor, others: list[Tensor]) -> None:
    """Hides padding in the batch's own mask [B, 1, S, S]. `others` are the function's locals, which die before its
    padding_mask.
    """
    whole, dtype = causal_mask.shape, causal_mask.dtype
    padding_mask = F.create(b, "padding_mask", whole, dtype)
    padding_mask, before = F.create(b, "padding_mask.eq", whole, "bool"), padding_mask
    del before
    filled = F.create(b, "masked_fill", whole, dtype)
    del filled
    while others:
        others.pop(0)
    del padding_mask


def plain_mask(b: Builder, settings: Settings, dtype: str) -> Tensor:
    """Runs Gemma2Model._update_causal_mask, which makes a mask for sdpa as well: [B, 1, S, S]."""
    batch, sequence = settings.batch, settings.sequence
    whole = (batch, 1, sequence, sequence)
    with b.module("causal_mask"), b.no_grad():
        mask = triangular(b, (sequence, sequence), dtype)
        if settings.padded:
            mask, before = F.create(b, "clone", whole, dtype), mask
            del before
            fill_padding(b, mask, [])
            return mask
        return b.op("expand", mask, shape=whole)


WINDOWED = ("mistral", "phi3")  # families whose mask supports windows


def square(b: Builder, config: DecoderConfig, shape: tuple[int, int], dtype: str) -> list[Tensor]:
    """Runs _prepare_4d_causal_attention_mask_with_cache_position without a mask of the batch. Returns [1, 1, *shape],
    and the function's other locals.
    """
    return (
        windowed(b, shape, dtype, config.sliding_window)
        if config.model_type in WINDOWED
        else [triangular(b, shape, dtype)]
    )


def triangular(b: Builder, shape: tuple[int, int], dtype: str) -> Tensor:
    """Runs LlamaModel's version."""
    causal_mask = F.create(b, "full", shape, dtype)
    if shape[0] != 1:
        causal_mask, before = F.create(b, "triu", shape, dtype), causal_mask
        del before
    later = after(b, shape)
    del later
    return b.op("view", causal_mask, shape=(1, 1, *shape))


def windowed(b: Builder, shape: tuple[int, int], dtype: str, window: int | None) -> list[Tensor]:
    """Runs MistralModel's version, with diagonal_attend_mask and sliding_attend_mask."""
    causal_mask = F.create(b, "full", shape, dtype)
    masks = [after(b, shape)]
    if window is not None:
        positions = F.create(b, "arange", (shape[1],), "int64")
        first = F.create(b, "minus_window", (shape[0], 1), "int64")
        masks.append(F.create(b, "compare", shape, "bool"))
        del positions
        del first
    return [b.op("view", causal_mask, shape=(1, 1, *shape)), *masks]


def after(b: Builder, shape: tuple[int, int]) -> Tensor:
    """Runs torch.arange(target_length) > cache_position.reshape(-1, 1): [S, width]."""
    positions = F.create(b, "arange", (shape[1],), "int64")
    result = F.create(b, "compare", shape, "bool")
    del positions
    return result


release_in_slot_order(__name__)
