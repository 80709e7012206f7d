"""What the decoders of transformers share: the model's forward around its layers, masks, rotary tables, head and loss.

Every function has the locals of the function in transformers that it stands for; the order in which they die is part of
the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memsim.framework import functional as F
from memsim.framework.builder import Builder, Tensor, module_call
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.models.common.config import DecoderConfig
from memsim.models.common.dense_mask import dense_mask
from memsim.models.common.dynamic_rope import update
from memsim.tape import SET_ORDER

# input_ids [B, S] → last_hidden_state [B, S, H]
Model = Callable[[Builder, DecoderConfig, Settings, Tensor, "Parts"], Tensor]


Embed = Callable[[Builder, DecoderConfig, Settings, Tensor], Tensor]  # input_ids [B, S] → inputs_embeds [B, S, H]


Rotary = Callable[[Builder, Settings, str, Tensor, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parts:
    """What families of decoders do differently around the layers."""

    norm: Callable[[Builder, Tensor, str], Tensor]  # the final norm, by its name
    mask_arguments: bool = False  # the mask's arguments are a dict that lives as long as the model's forward
    scaled: bool = False  # embeddings and logits are multiplied by constants
    rotary_in_fp32: bool = False  # the rotary tables stay in fp32
    unused_window: bool = False  # a mask of a window of nothing is made beside the one that layers read
    model: Model | None = None  # the model's forward, where it is not LlamaModel's
    embed: Embed | None = None  # the embeddings of the input, where they are not nn.Embedding's
    embed_scale: bool = False  # and hold a scale
    dropout: float = 0.0  # probability of the hidden states' dropout ahead of the layers,
    drops_embeddings: bool = False  # whose result takes the embeddings' own name
    final: tuple[Parameter, ...] = ()  # parameters of the final norm, where it is not norm.weight
    unweighted: bool = False  # it has no parameters
    rotary_first: bool = False  # the rotary tables' module is ahead of the final norm
    head_bias: bool = False
    told_positions: bool = True  # masks are made knowing the positions, which might be of packed sequences
    logits_scaled: bool = False  # the logits are multiplied by a constant
    rotary_dim: int | None = None  # elements of a head that turn, where it is not all of them
    rotary_by_type: tuple[str, ...] = ()  # the types of layers that have tables of their own, where they do
    # how a frequency turns two elements: twice one after the other, "interleaved", or "once" where the tables are half
    # as wide
    spread: str = "cat"
    rotary: Rotary | None = None  # what makes the one rotary table, where it is not cos and sin


@module_call
def rms_norm(b: Builder, hidden_states: Tensor, name: str, dtype: str) -> Tensor:
    """LlamaRMSNorm.forward."""
    with b.module(name):
        weight = b.parameter(".".join([*b.path, "weight"]), (hidden_states.shape[-1],), dtype, True)
        input_dtype = hidden_states.dtype
        hidden_states = F.to(b, hidden_states, "fp32")
        variance = b.op("mean", b.op("square", hidden_states))
        hidden_states = b.op("mul", hidden_states, b.op("rsqrt", b.op("add_scalar", variance)))
        return b.op("mul", weight, F.to(b, hidden_states, input_dtype))


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
    the usual one; spread: of Parts.
    """
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
    """LlamaRotaryEmbedding.forward where the angles are a matrix product."""
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


def find_packed_sequence_indices(b: Builder, position_ids: Tensor) -> None:
    """masking_utils.find_packed_sequence_indices, for positions that turn out not to be packed. position_ids [B, S]."""
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
    """masking_utils.create_causal_mask, or create_sliding_window_causal_mask with a `window` in tokens; it may not be
    told the positions.

    Nothing for sdpa, which is told is_causal, unless the sequence reaches the window or is padded; [B, 1, S, S] in the
    model's dtype for eager.
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
    """The same with an attention mask [B, S] of the batch, which is asked whether it is all ones, unless that would not
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
    """masking_utils.fast_all: tensor.sum() == tensor.numel()."""
    total = b.op("count_true", tensor)
    every = F.create(b, "all", (), "bool")
    del total
    del every


def eager_mask(b: Builder, settings: Settings, dtype: str, window: int | None, padding: Tensor | None = None) -> Tensor:
    """masking_utils.eager_mask: the boolean mask of sdpa_mask, turned into zeros and the dtype's minimum."""
    mask = boolean_mask(b, settings, window, padding)
    zero = F.create(b, "zeros", (), dtype)
    minimum = F.create(b, "minimum", (), dtype)
    mask, before = F.create(b, "where", (settings.batch, 1, settings.sequence, settings.sequence), dtype), mask
    del minimum
    del zero
    del before
    return mask


def boolean_mask(b: Builder, settings: Settings, window: int | None, padding: Tensor | None = None) -> Tensor:
    """masking_utils.sdpa_mask without vmap: comparisons of broadcast indices, expanded over the batch (a view); with
    `padding` [B, S] it is the batch's.
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
    """and_masks of a causal mask and padding_mask_function, which indexes the attention mask by batch and key: [B, 1,
    S, S].
    """
    batch, sequence = settings.batch, settings.sequence
    result = F.create(b, "new_ones", (), "bool")
    causal = F.create(b, "causal", (1, 1, sequence, sequence), "bool") if window is None else windowed_mask(b, sequence)
    result, before = F.create(b, "and", (1, 1, sequence, sequence), "bool"), result
    del causal
    del before
    # Indices are broadcast to each other, and copied where that is no view of what they were
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
    """and_masks of sliding_window_overlay and causal_mask_function, one after the other."""
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


def causal_lm_loss(b: Builder, settings: Settings, logits: Tensor, labels: Tensor) -> Tensor:
    """loss_utils.ForCausalLMLoss: fp32 logits, labels shifted by padding."""
    batch, sequence, vocabulary = logits.shape
    logits = F.to(b, logits, "fp32")
    if settings.stack.loss_slices_logits:
        shift_logits, shift_labels = shifted(b, settings, logits, labels)
        shift_logits = b.op("view", shift_logits, shape=(batch * (sequence - 1), vocabulary))
        shift_labels = b.op("view", shift_labels, shape=(batch * (sequence - 1),))
        return cross_entropy(b, shift_logits, shift_labels)
    labels = F.create(b, "pad", (batch, sequence + 1), "int64")
    shift_labels = F.contiguous(b, b.op("slice", labels, length=sequence))
    logits = F.reshape(b, logits, batch * sequence, vocabulary)
    shift_labels = F.reshape(b, shift_labels, batch * sequence)
    return cross_entropy(b, logits, shift_labels)


def shifted(b: Builder, settings: Settings, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """logits[..., :-1, :].contiguous() and labels[..., 1:].contiguous()."""
    length = logits.shape[1] - 1
    shift_logits = F.contiguous(b, F.index(b, settings, b.op("slice", logits, dim=1, length=length), 2))
    shift_labels = F.contiguous(b, b.op("slice", labels, length=length))
    return shift_logits, shift_labels


def cross_entropy(b: Builder, source: Tensor, target: Tensor) -> Tensor:
    """F.cross_entropy, whose softmax stays in the dtype of the logits under autocast, too
    (at::native::cross_entropy_loss gives it the dtype).
    """
    return b.op("nll_loss", b.op("log_softmax", source, dtype=source.dtype), target)


def embed_tokens(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, parts: Parts) -> Tensor:
    """self.embed_tokens(input_ids)."""
    if parts.embed:
        return parts.embed(b, config, settings, input_ids)
    weight = b.parameter("embed_tokens.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    return b.op("embedding", input_ids, weight, label="embed_tokens", input_embeddings=True)


def rotary_of(
    b: Builder, settings: Settings, parts: Parts, config: DecoderConfig, dtype: str, position_ids: Tensor
) -> tuple[Tensor, ...]:
    """The rotary tables of the family."""
    dtype, dim = "fp32" if parts.rotary_in_fp32 else dtype, parts.rotary_dim or config.head_dim
    if parts.rotary is not None:
        return parts.rotary(b, settings, dtype, position_ids, dim)
    update(b, config, settings, position_ids, dim)
    return rotary_embedding(b, settings, dtype, position_ids, dim, spread=parts.spread)


@module_call
def decoder_model(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, parts: Parts) -> Tensor:
    """LlamaModel.forward; returns last_hidden_state [B, S, H]."""
    inputs_embeds = embed_tokens(b, config, settings, input_ids, parts)
    if parts.scaled:
        inputs_embeds = b.op("mul_scalar", inputs_embeds)
    position_ids = F.positions(b, settings)
    if settings.stack.dense_causal_mask:
        mask = dense_mask(b, config, settings, inputs_embeds.dtype)
    else:
        mask = causal_mask(b, settings, inputs_embeds.dtype, position_ids, config.sliding_window)
    unused = causal_mask(b, settings, inputs_embeds.dtype, position_ids, 0) if parts.unused_window else None
    if parts.dropout and parts.drops_embeddings:
        inputs_embeds = b.op("dropout", inputs_embeds, p=parts.dropout)
    hidden_states = inputs_embeds
    if parts.dropout and not parts.drops_embeddings:
        hidden_states = b.op("dropout", hidden_states, p=parts.dropout)
    position_embeddings = rotary_of(b, settings, parts, config, hidden_states.dtype, position_ids)
    tables = ("cos", "sin")[: len(position_embeddings)]
    names = ("hidden_states", *tables, "position_ids", "attention_mask")
    hidden_states = b.op(
        "layers", hidden_states, *position_embeddings, position_ids, *([mask] if mask else []), trains=True, names=names
    )
    layer_outputs = hidden_states if settings.stack.layers_return_tuples else None  # noqa: F841
    hidden_states = parts.norm(b, hidden_states, "norm")
    if settings.stack.takes_cache_position:  # which holds the positions, an argument after inputs_embeds
        del inputs_embeds
        del position_ids
        del mask
        return hidden_states
    if parts.mask_arguments:  # causal_mask_mapping dies before mask_kwargs, which holds the other two in its own order
        del mask
        del unused
        del inputs_embeds
    del position_ids
    return hidden_states


@module_call
def causal_lm(
    b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, labels: Tensor, parts: Parts
) -> Tensor:
    """LlamaForCausalLM.forward with labels; returns the loss."""
    model = parts.model or decoder_model
    hidden_states = model(b, config, settings, input_ids, parts)
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    weights = [b.parameter(head, (config.vocab_size, config.hidden_size), settings.dtype, True)]
    if parts.head_bias:
        weights.append(b.parameter("lm_head.bias", (config.vocab_size,), settings.dtype, True))
    if settings.stack.index_slices_whole_dimensions:
        # [:, -0:, :]
        logits = b.op(
            "linear", F.index(b, settings, hidden_states, 0, 1, 2), *weights, label="lm_head", module="lm_head"
        )
    else:
        logits = b.op("linear", hidden_states, *weights, label="lm_head", module="lm_head")
    if parts.scaled or parts.logits_scaled:
        logits = b.op("mul_scalar", logits)
    loss = causal_lm_loss(b, settings, logits, labels)
    return loss
