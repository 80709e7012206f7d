"""Attention masks as transformers makes them (masking_utils.py): booleans, or numbers for eager attention."""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor


def find_packed_sequence_indices(b: Builder, position_ids: Tensor) -> None:
    """Runs masking_utils.find_packed_sequence_indices, for positions that turn out not to be packed. position_ids [B,
    S].
    """
    batch, sequence = position_ids.shape
    first_dummy_value = F.create(b, "first_dummy_value", (batch, 1), "int64")
    with_first = F.create(b, "diff.cat", (batch, sequence + 1), "int64")
    position_diff = F.create(b, "diff", (batch, sequence), "int64")
    del with_first
    packed_sequence_mask = b.op("cumsum", b.op("compare", position_diff))
    last = F.create(b, "last_is_zero", (batch,), "bool")
    every = F.create(b, "all", (), "bool")
    del last
    del every
    del first_dummy_value
    del position_diff
    del packed_sequence_mask


def causal_mask(
    b: Builder, settings: Settings, dtype: str, position_ids: Tensor | None, window: int | None = None
) -> Tensor | None:
    """Runs masking_utils.create_causal_mask, or create_sliding_window_causal_mask with a `window` in tokens. The
    positions may be None.

    Returns None for sdpa, which gets is_causal, unless the sequence reaches the window or is padded. Returns [B, 1, S,
    S] in the model's dtype for eager.
    """
    sequence = settings.sequence
    with b.module("causal_mask"), b.no_grad():
        if settings.padded:
            return padded_mask(b, settings, dtype, window)
        if position_ids is not None:
            expanded = (
                b.op("expand", position_ids, shape=(settings.batch, sequence)) if settings.batch > 1 else position_ids
            )
            find_packed_sequence_indices(b, expanded)
            del expanded
        if settings.attention == "flash_attention_2":
            return None
        windowed = window is not None and settings.sequence >= window
        if settings.attention == "eager":
            return eager_mask(b, settings, dtype, window)
        return boolean_mask(b, settings, window) if windowed else None


@module_call
def padded_mask(b: Builder, settings: Settings, dtype: str, window: int | None) -> Tensor:
    """Does the same with an attention mask [B, S] of the batch. sdpa asks whether it is all ones, unless that would not
    help.
    """
    attention_mask = F.create(b, "attention_mask.bool", (settings.batch, settings.sequence), "bool")
    if settings.attention == "eager":
        mask = eager_mask(b, settings, dtype, window, attention_mask)
        return mask
    if settings.attention == "flash_attention_2":  # flash_attention_mask
        every = b.op("all", attention_mask)
        del every
        return attention_mask
    if window is None or settings.sequence < window:
        fast_all(b, attention_mask)
        fast_all(b, attention_mask)
    mask = boolean_mask(b, settings, window, attention_mask)
    return mask


@module_call
def fast_all(b: Builder, tensor: Tensor) -> None:
    """Runs masking_utils.fast_all: tensor.sum() == tensor.numel()."""
    total = b.op("count_true", tensor)
    every = F.create(b, "all", (), "bool")
    del total
    del every


def eager_mask(b: Builder, settings: Settings, dtype: str, window: int | None, padding: Tensor | None = None) -> Tensor:
    """Runs masking_utils.eager_mask: the boolean mask of sdpa_mask, turned into zeros and the dtype's minimum."""
    mask = boolean_mask(b, settings, window, padding)
    zero = F.create(b, "zeros", (), dtype)
    minimum = F.create(b, "minimum", (), dtype)
    mask, before = F.create(b, "where", (settings.batch, 1, settings.sequence, settings.sequence), dtype), mask
    del minimum
    del zero
    del before
    return mask


def boolean_mask(b: Builder, settings: Settings, window: int | None, padding: Tensor | None = None) -> Tensor:
    """Runs masking_utils.sdpa_mask without vmap: comparisons of broadcast indices, expanded over the batch (a view).
    With `padding` [B, S] the mask is the batch's.
    """
    sequence = settings.sequence
    batch_arange = F.create(b, "batch_arange", (settings.batch,), "int64")
    head_arange = F.create(b, "head_arange", (1,), "int64")
    q_arange = F.create(b, "q_arange", (sequence,), "int64")
    q_arange = F.create(b, "q_arange", (sequence,), "int64")
    kv_arange = F.create(b, "kv_arange", (sequence,), "int64")
    kv_arange = F.create(b, "kv_arange", (sequence,), "int64")
    square = (1, 1, sequence, sequence)
    if padding is not None:
        mask = and_padding(b, settings, window)
    else:
        mask = F.create(b, "causal", square, "bool") if window is None else windowed_mask(b, sequence)
        mask = b.op("expand", mask, shape=(settings.batch, *square[1:]))
    del batch_arange
    del head_arange
    del q_arange
    del kv_arange
    return mask


def and_padding(b: Builder, settings: Settings, window: int | None) -> Tensor:
    """Runs and_masks of a causal mask and padding_mask_function, which indexes the attention mask by batch and key: [B,
    1, S, S].
    """
    batch, sequence = settings.batch, settings.sequence
    result = F.create(b, "new_ones", (), "bool")
    causal = F.create(b, "causal", (1, 1, sequence, sequence), "bool") if window is None else windowed_mask(b, sequence)
    result, before = F.create(b, "and", (1, 1, sequence, sequence), "bool"), result
    del causal
    del before
    # Indices are broadcast to each other, and copied where that is not a view of the original
    # (ATen/native/TensorAdvancedIndexing.cpp).
    batch_index = F.create(b, "batch_index", (batch, 1, 1, sequence), "int64") if sequence > 1 else None
    key_index = F.create(b, "key_index", (batch, 1, 1, sequence), "int64") if batch > 1 else None
    inside = F.create(b, "padding", (batch, 1, 1, sequence), "bool")
    del key_index
    del batch_index
    result, before = F.create(b, "and", (batch, 1, sequence, sequence), "bool"), result
    del inside
    del before
    return result


def windowed_mask(b: Builder, sequence: int) -> Tensor:
    """Runs and_masks of sliding_window_overlay and causal_mask_function, one after the other."""
    square = (1, 1, sequence, sequence)
    result = F.create(b, "new_ones", (), "bool")
    shifted = F.create(b, "q_minus_window", (1, 1, sequence, 1), "int64")
    inside = F.create(b, "in_window", square, "bool")
    del shifted
    result, before = F.create(b, "and", square, "bool"), result
    del inside
    del before
    inside = F.create(b, "causal", square, "bool")
    result, before = F.create(b, "and", square, "bool"), result
    del inside
    del before
    return result


release_in_slot_order(__name__)
