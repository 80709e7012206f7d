"""GPT-NeoX, Pythia (transformers/models/gpt_neox/modeling_gpt_neox.py): one projection for q, k and v, partial rotary,
parallel residual, LayerNorm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common import tied_head
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, INPUTS, layer_inputs
from memsim.models.common.attention import attention
from memsim.models.common.config import DecoderConfig, decoder_config, probability
from memsim.models.common.dynamic_rope import rope_of
from memsim.models.common.masks import causal_mask
from memsim.models.common.mlp import activation
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_partial_rotary_pos_emb
from memsim.models.common.rotary_tables import rotary_embedding
from memsim.models.common.tied_head import head_parameters


@dataclass(frozen=True)
class NeoX:
    """A configuration, and what of it is GPT-NeoX's own."""

    decoder: DecoderConfig
    rotary: int  # dimensions of a head that turn
    parallel: bool
    dropout: float


@module_call
def self_attention(
    b: Builder, neox: NeoX, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """GPTNeoXAttention.forward."""
    config = neox.decoder
    with b.module("attention"):
        batch, sequence, hidden = hidden_states.shape
        fused = F.linear(b, hidden_states, "query_key_value", 3 * hidden, settings.dtype, config.attention_bias)
        qkv = F.transpose(
            b, b.op("view", fused, shape=(batch, sequence, config.num_attention_heads, 3 * config.head_dim)), 1, 2
        )
        del fused
        query_states, key_states, value_states = b.run("chunk", qkv, parts=3)
        query_states, key_states = apply_partial_rotary_pos_emb(b, query_states, key_states, cos, sin)
        attn_output, attn_weights = attention(
            b, settings, query_states, key_states, value_states, mask, 1, p=config.attention_dropout
        )
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, hidden))
        attn_output = F.linear(b, attn_output, "dense", hidden, settings.dtype, config.attention_bias)
        return attn_output, attn_weights


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """GPTNeoXMLP.forward."""
    with b.module("mlp"):
        hidden_states = F.linear(b, hidden_states, "dense_h_to_4h", config.intermediate_size, settings.dtype, True)
        hidden_states = b.op(activation(config), hidden_states)
        hidden_states = F.linear(b, hidden_states, "dense_4h_to_h", config.hidden_size, settings.dtype, True)
        return hidden_states


@module_call
def layer(
    b: Builder, neox: NeoX, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> Tensor:
    """GPTNeoXLayer.forward."""
    config, dtype = neox.decoder, settings.dtype
    attn_output, _ = self_attention(
        b, neox, settings, layer_norm(b, hidden_states, "input_layernorm", dtype), cos, sin, mask
    )
    attn_output = dropout(b, attn_output, neox.dropout)
    if neox.parallel:
        mlp_output = mlp(b, config, settings, layer_norm(b, hidden_states, "post_attention_layernorm", dtype))
        mlp_output = dropout(b, mlp_output, neox.dropout)
        hidden_states = b.op("add", b.op("add", mlp_output, attn_output), hidden_states, label="residual")
    else:
        attn_output = b.op("add", attn_output, hidden_states, label="residual")
        mlp_output = mlp(b, config, settings, layer_norm(b, attn_output, "post_attention_layernorm", dtype))
        mlp_output = dropout(b, mlp_output, neox.dropout)
        hidden_states = b.op("add", mlp_output, attn_output, label="residual")
    return hidden_states


@module_call
def model(b: Builder, neox: NeoX, settings: Settings, input_ids: Tensor) -> Tensor:
    """GPTNeoXModel.forward; returns last_hidden_state [B, S, H]."""
    config = neox.decoder
    weight = b.parameter("embed_in.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    inputs_embeds = b.op("embedding", input_ids, weight, label="embed_in", input_embeddings=True)
    position_ids = F.positions(b, settings)
    mask = causal_mask(b, settings, inputs_embeds.dtype, position_ids)
    hidden_states = dropout(b, inputs_embeds, neox.dropout)
    position_embeddings = rotary_embedding(b, settings, hidden_states.dtype, position_ids, neox.rotary)
    hidden_states = b.op(
        "layers", hidden_states, *position_embeddings, position_ids, *([mask] if mask else []), trains=True
    )
    hidden_states = layer_norm(b, hidden_states, "final_layer_norm", settings.dtype)
    del position_ids  # arguments of forward die before its other locals
    del inputs_embeds
    del mask
    return hidden_states


def causal_lm(b: Builder, neox: NeoX, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """GPTNeoXForCausalLM.forward with labels; returns the loss."""
    table = (neox.decoder.vocab_size, neox.decoder.hidden_size)
    return tied_head.causal_lm(
        b,
        settings,
        lambda: model(b, neox, settings, input_ids),
        labels,
        "embed_in.weight",
        table,
        neox.decoder.tie_word_embeddings,
    )


def layer_parameters(neox: NeoX, dtype: str) -> tuple[Parameter, ...]:
    """A layer's parameters in module order."""
    config = neox.decoder
    hidden, inner = config.hidden_size, config.intermediate_size

    def linear(name: str, out: int, inputs: int, bias: bool = True) -> list[Parameter]:
        rows = [Parameter(f"{name}.weight", (out, inputs), dtype, module="linear")]
        return [*rows, Parameter(f"{name}.bias", (out,), dtype, module="linear")] if bias else rows

    return (
        *norm_parameters("input_layernorm", hidden, dtype),
        *norm_parameters("post_attention_layernorm", hidden, dtype),
        *linear("attention.query_key_value", 3 * hidden, hidden, config.attention_bias),
        *linear("attention.dense", hidden, hidden, config.attention_bias),
        *linear("mlp.dense_h_to_4h", inner, hidden),
        *linear("mlp.dense_4h_to_h", hidden, inner),
    )


def read_config(fields: Mapping[str, object]) -> NeoX:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    config = decoder_config(fields, attention_bias=True, hidden_act="gelu")
    check_supported(config)
    if (
        config.num_key_value_heads != config.num_attention_heads
        or config.head_dim * config.num_attention_heads != config.hidden_size
    ):
        raise InputError("model: gpt_neox has as many key-value heads as heads, and its heads make up hidden_size")
    part = rope_of(config).get("partial_rotary_factor")
    share = config.fields.get("rotary_pct", 0.25) if part is None else part
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1:
        raise InputError(f"model.rotary_pct: {share!r} is not a share from above 0 to 1")
    rotary = int(config.head_dim * share)
    rotary += rotary % 2  # a frequency turns two dimensions
    if not 2 <= rotary <= config.head_dim:
        raise InputError(
            f"model.rotary_pct: {share} of a head of {config.head_dim} is no pair of dimensions within it, and these "
            "turn together"
        )
    return NeoX(
        config,
        rotary,
        bool(config.fields.get("use_parallel_residual", True)),
        probability(config.fields, "hidden_dropout", 0.0),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    neox, dtype = read_config(fields), settings.dtype
    config = neox.decoder
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, neox, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("layer", settings.technique)
    arguments = layer_inputs(inner, call, INPUTS)
    hidden = layer(
        inner,
        neox,
        settings,
        arguments["hidden_states"],
        arguments["cos"],
        arguments["sin"],
        arguments.get("attention_mask"),
    )
    table = (config.vocab_size, config.hidden_size)
    tail = [*norm_parameters("final_layer_norm", config.hidden_size, dtype)]
    tail += [
        Parameter(f"rotary_emb.{name}", (neox.rotary // 2,), "fp32", trainable=False, buffer=True)
        for name in ("inv_freq", "original_inv_freq")
    ]
    tail += head_parameters(table, dtype, config.tie_word_embeddings)
    return Model(
        before=(Parameter("embed_in.weight", table, dtype, module="embedding"),),
        layers=(layer_parameters(neox, dtype),),
        after=tuple(tail),
        pattern=(0,) * config.num_hidden_layers,
        outer=outer,
        layer_graphs=(inner.finish(hidden),),
        settings=settings,
        hold_inputs=HOLD_POSITIONS_FIRST,
    )


release_in_slot_order(__name__)
