"""Causal masks as transformers made them before masking_utils: numbers, not booleans (transformers 4.48: models/llama/modeling_llama.py).

Every function has the locals of the function in transformers that it stands for.
"""

from __future__ import annotations

from memsim.builder import Builder, Tensor
from memsim.models import functional as F
from memsim.models.config import DecoderConfig
from memsim.models.model import Settings


def dense_mask(b: Builder, config: DecoderConfig, settings: Settings, dtype: str) -> Tensor | None:
    """_update_causal_mask: [B, 1, S, S + 1] in `dtype`, one that is expanded over the batch (a view).

    Nothing for sdpa, which is told is_causal, unless the sequence reaches the window.
    """
    sequence, window = settings.sequence, config.sliding_window
    if settings.attention == "sdpa" and (sequence == 1 or window is None or sequence < window):
        return None
    with b.module("causal_mask"), b.no_grad():
        mask = windowed(b, sequence, dtype, window) if config.model_type in WINDOWED else triangular(b, sequence, dtype)
        return b.op("expand", mask, shape=(settings.batch, 1, sequence, sequence + 1))


WINDOWED = ("mistral", "phi3")  # the families whose mask knows of windows


def triangular(b: Builder, sequence: int, dtype: str) -> Tensor:
    """LlamaModel._prepare_4d_causal_attention_mask_with_cache_position."""
    shape = (sequence, sequence + 1)
    causal_mask = F.create(b, "full", shape, dtype)
    if sequence != 1:
        causal_mask, before = F.create(b, "triu", shape, dtype), causal_mask
        del before
    later = after(b, shape)
    del later
    return b.op("view", causal_mask, shape=(1, 1, *shape))


def windowed(b: Builder, sequence: int, dtype: str, window: int | None) -> Tensor:
    """MistralModel._prepare_4d_causal_attention_mask_with_cache_position."""
    shape = (sequence, sequence + 1)
    causal_mask = F.create(b, "full", shape, dtype)
    diagonal_attend_mask = after(b, shape)
    if window is not None:
        positions = F.create(b, "arange", (shape[1],), "int64")
        first = F.create(b, "minus_window", (shape[0], 1), "int64")
        sliding_attend_mask = F.create(b, "compare", shape, "bool")
        del positions
        del first
        causal_mask = b.op("view", causal_mask, shape=(1, 1, *shape))
        del diagonal_attend_mask
        del sliding_attend_mask
        return causal_mask
    del diagonal_attend_mask
    return b.op("view", causal_mask, shape=(1, 1, *shape))


def after(b: Builder, shape: tuple[int, int]) -> Tensor:
    """torch.arange(target_length) > cache_position.reshape(-1, 1): [S, S + 1]."""
    positions = F.create(b, "arange", (shape[1],), "int64")
    result = F.create(b, "compare", shape, "bool")
    del positions
    return result
