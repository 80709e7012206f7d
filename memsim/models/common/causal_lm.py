"""Code that the decoders of transformers share: the model's forward around its layers, masks, rotary tables, head and
loss.

Every function has the locals of the function in transformers that it stands for. The order in which they die is part of
the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig
from memsim.models.common.dense_mask import dense_mask
from memsim.models.common.dynamic_rope import update
from memsim.models.common.losses import causal_lm_loss
from memsim.models.common.masks import causal_mask
from memsim.models.common.rotary_tables import rotary_embedding

# input_ids [B, S] → last_hidden_state [B, S, H]
Model = Callable[[Builder, DecoderConfig, Settings, Tensor, "Parts"], Tensor]


Embed = Callable[[Builder, DecoderConfig, Settings, Tensor], Tensor]  # input_ids [B, S] → inputs_embeds [B, S, H]


Rotary = Callable[[Builder, Settings, str, Tensor, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parts:
    """The differences between families of decoders around the layers."""

    norm: Callable[[Builder, Tensor, str], Tensor]  # the final norm, by its name
    mask_arguments: bool = False  # the mask's arguments are a dict that lives as long as the model's forward
    scaled: bool = False  # embeddings and logits are multiplied by constants
    rotary_in_fp32: bool = False  # the rotary tables stay in fp32
    unused_window: bool = False  # a mask of an empty window is made beside the one that layers read
    model: Model | None = None  # the model's forward, where it is not LlamaModel's
    embed: Embed | None = None  # the embeddings of the input, where they are not nn.Embedding's
    embed_scale: bool = False  # embeddings hold a scale
    dropout: float = 0.0  # probability of the dropout of hidden states ahead of the layers,
    drops_embeddings: bool = False  # whose result takes the embeddings' own name
    final: tuple[Parameter, ...] = ()  # parameters of the final norm, where it is not norm.weight
    unweighted: bool = False  # the final norm has no parameters
    rotary_first: bool = False  # the rotary tables' module is ahead of the final norm
    head_bias: bool = False
    told_positions: bool = True  # masks are made from the positions, which might be of packed sequences
    logits_scaled: bool = False  # the logits are multiplied by a constant
    rotary_dim: int | None = None  # number of elements of a head that turn, where it is not all of them
    rotary_by_type: tuple[str, ...] = ()  # types of layers that have tables of their own, where they do
    # How the tables repeat a frequency for the two elements that it turns: "cat", one half after the other,
    # "interleaved", or "once" where the tables are half as wide.
    spread: str = "cat"
    rotary: Rotary | None = None  # makes the one rotary table, where it is not cos and sin


def embed_tokens(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, parts: Parts) -> Tensor:
    """Runs self.embed_tokens(input_ids)."""
    if parts.embed:
        return parts.embed(b, config, settings, input_ids)
    weight = b.parameter("embed_tokens.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    return b.op("embedding", input_ids, weight, label="embed_tokens", input_embeddings=True)


def rotary_of(
    b: Builder, settings: Settings, parts: Parts, config: DecoderConfig, dtype: str, position_ids: Tensor
) -> tuple[Tensor, ...]:
    """Returns the rotary tables of the family."""
    dtype, dim = "fp32" if parts.rotary_in_fp32 else dtype, parts.rotary_dim or config.head_dim
    if parts.rotary is not None:
        return parts.rotary(b, settings, dtype, position_ids, dim)
    update(b, config, settings, position_ids, dim)
    return rotary_embedding(b, settings, dtype, position_ids, dim, spread=parts.spread)


@module_call
def decoder_model(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, parts: Parts) -> Tensor:
    """Runs LlamaModel.forward. Returns last_hidden_state [B, S, H]."""
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
    if settings.stack.takes_cache_position:  # it holds the positions, an argument after inputs_embeds
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
    """Runs LlamaForCausalLM.forward with labels. Returns the loss."""
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


release_in_slot_order(__name__)
