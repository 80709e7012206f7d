"""Falcon (transformers/models/falcon/modeling_falcon.py): attention and MLP side by side, one projection for all heads,
few keys and values.

7B has one key and one value head (multi_query), 40B a pair for each group, which it expands (new_decoder_architecture).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common import tied_head
from memsim.models.common.activations import UNGATED
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, INPUTS, layer_inputs
from memsim.models.common.attention import chosen, masked_efficient
from memsim.models.common.config import DecoderConfig, decoder_config, integer, probability
from memsim.models.common.masks import boolean_mask
from memsim.models.common.math_attention import math_attention
from memsim.models.common.norms import dropout_add, layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb
from memsim.models.common.rotary_tables import rotary_embedding
from memsim.models.common.tied_head import head_parameters
from memsim.models.phi import act


@dataclass(frozen=True)
class Falcon:
    """A configuration, and what of it is Falcon's own."""

    decoder: DecoderConfig
    grouped: bool  # new_decoder_architecture: a key and a value for each group of heads, else one for all
    two_norms: bool  # one for attention and one for the MLP
    dropout: float


def split_heads(b: Builder, falcon: Falcon, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """FalconAttention._split_heads: [B, S, H, D], and keys and values of as many heads, or of one. Lists as indices are
    tensors, made and copied.
    """
    config = falcon.decoder
    batch, sequence, _ = fused_qkv.shape
    heads, d, groups = config.num_attention_heads, config.head_dim, config.num_key_value_heads
    if falcon.grouped:
        each = heads // groups
        qkv = b.op("view", fused_qkv, shape=(batch, sequence, groups, each + 2, d))
        query = b.op("slice", qkv, dim=3, length=each)
        key = b.op("index", qkv, F.create(b, "index", (1,), "int64"), dim=3)
        value = b.op("index", qkv, F.create(b, "index", (1,), "int64"), dim=3)
        key = b.op("expand", key, shape=query.shape)
        value = b.op("expand", value, shape=query.shape)
        flat = [F.reshape(b, x, batch, sequence, heads, d) for x in (query, key, value)]
        query, key, value = flat
        del flat
        return query, key, value
    qkv = b.op("view", fused_qkv, shape=(batch, sequence, heads + 2, d))
    query = b.op("slice", qkv, dim=2, length=heads)
    key = b.op("index", qkv, F.create(b, "index", (1,), "int64"), dim=2)
    value = b.op("index", qkv, F.create(b, "index", (1,), "int64"), dim=2)
    return query, key, value


@module_call
def self_attention(
    b: Builder, falcon: Falcon, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """FalconAttention.forward with sdpa."""
    config = falcon.decoder
    with b.module("self_attention"):
        batch, sequence, hidden = hidden_states.shape
        pairs = config.num_key_value_heads if falcon.grouped else 1
        width = (config.num_attention_heads + 2 * pairs) * config.head_dim
        fused_qkv = F.linear(b, hidden_states, "query_key_value", width, settings.dtype, of_view=True)
        query_layer, key_layer, value_layer = split_heads(b, falcon, fused_qkv)
        query_layer = F.transpose(b, query_layer, 1, 2)
        key_layer = F.transpose(b, key_layer, 1, 2)
        value_layer = F.transpose(b, value_layer, 1, 2)
        query_layer, key_layer = apply_rotary_pos_emb(b, query_layer, key_layer, cos, sin)
        attn_output = attend(b, falcon, settings, query_layer, key_layer, value_layer, mask)
        attn_output = F.transpose(b, attn_output, 1, 2)
        attn_output = F.reshape(b, attn_output, batch, sequence, hidden)
        attn_output = F.linear(b, attn_output, "dense", hidden, settings.dtype, of_view=True)
        return attn_output, None


def attend(
    b: Builder, falcon: Falcon, settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """F.scaled_dot_product_attention with a mask, which FlashAttention cannot read. Raises Unsupported."""
    dim = query.shape[-1]
    if chosen(settings, b.autocast or query.dtype, (dim, dim), masked=True, requires_grad=True) == "math":
        if not falcon.grouped:
            raise Unsupported(
                f"model.multi_query: true with heads of {dim} in {query.dtype} on sm {settings.sm}, which no fused "
                "kernel takes, is not supported yet"
            )
        return math_attention(b, query, key, value, mask, causal=False, watched=settings.watched)
    return masked_efficient(b, query, key, value, mask, 0.0)


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, x: Tensor) -> Tensor:
    """FalconMLP.forward."""
    with b.module("mlp"):
        x = act(b, config, F.linear(b, x, "dense_h_to_4h", config.intermediate_size, settings.dtype, of_view=True))
        x = F.linear(b, x, "dense_4h_to_h", config.hidden_size, settings.dtype, of_view=True)
        return x


@module_call
def layer(
    b: Builder, falcon: Falcon, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
) -> Tensor:
    """FalconDecoderLayer.forward."""
    residual = hidden_states
    if falcon.two_norms:
        attention_layernorm_out = layer_norm(b, hidden_states, "ln_attn", settings.dtype)
        mlp_layernorm_out = layer_norm(b, hidden_states, "ln_mlp", settings.dtype)
    else:
        attention_layernorm_out = layer_norm(b, hidden_states, "input_layernorm", settings.dtype)
        mlp_layernorm_out = attention_layernorm_out
    attention_output, _ = self_attention(b, falcon, settings, attention_layernorm_out, cos, sin, mask)
    mlp_output = mlp(b, falcon.decoder, settings, mlp_layernorm_out)
    mlp_output = b.op("add_", mlp_output, attention_output)
    output = dropout_add(b, mlp_output, residual, falcon.dropout)
    return output


def mask_of(b: Builder, settings: Settings) -> Tensor:
    """create_causal_mask that makes one in any case."""
    with b.module("causal_mask"), b.no_grad():
        attention_mask = (
            F.create(b, "attention_mask.bool", (settings.batch, settings.sequence), "bool") if settings.padded else None
        )
        return boolean_mask(b, settings, None, attention_mask)


@module_call
def model(b: Builder, falcon: Falcon, settings: Settings, input_ids: Tensor) -> Tensor:
    """FalconModel.forward; returns last_hidden_state [B, S, H]."""
    config = falcon.decoder
    weight = b.parameter("word_embeddings.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    inputs_embeds = b.op("embedding", input_ids, weight, label="word_embeddings", input_embeddings=True)
    position_ids = F.positions(b, settings)
    causal_mask = mask_of(b, settings)
    hidden_states = inputs_embeds
    position_embeddings = rotary_embedding(b, settings, hidden_states.dtype, position_ids, config.head_dim)
    hidden_states = b.op("layers", hidden_states, *position_embeddings, position_ids, causal_mask, trains=True)
    outputs = hidden_states  # a tuple with the weights, where there are any
    hidden_states = layer_norm(b, hidden_states, "ln_f", settings.dtype)
    del position_ids  # arguments of forward die before its other locals
    del inputs_embeds
    del causal_mask
    del position_embeddings
    del outputs
    return hidden_states


def causal_lm(b: Builder, falcon: Falcon, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """FalconForCausalLM.forward with labels; returns the loss."""
    table = (falcon.decoder.vocab_size, falcon.decoder.hidden_size)
    return tied_head.causal_lm(
        b,
        settings,
        lambda: model(b, falcon, settings, input_ids),
        labels,
        "word_embeddings.weight",
        table,
        falcon.decoder.tie_word_embeddings,
    )


def layer_parameters(falcon: Falcon, dtype: str) -> tuple[Parameter, ...]:
    """A layer's parameters in module order."""
    config = falcon.decoder
    hidden, inner = config.hidden_size, config.intermediate_size
    pairs = config.num_key_value_heads if falcon.grouped else 1
    rows = linear_parameters(
        "self_attention.query_key_value", (config.num_attention_heads + 2 * pairs) * config.head_dim, hidden, dtype
    )
    rows += linear_parameters("self_attention.dense", hidden, hidden, dtype)
    rows += linear_parameters("mlp.dense_h_to_4h", inner, hidden, dtype)
    rows += linear_parameters("mlp.dense_4h_to_h", hidden, inner, dtype)
    names = ("ln_attn", "ln_mlp") if falcon.two_norms else ("input_layernorm",)
    return (
        *(replace(p, own_class=True) for p in rows),
        *(p for name in names for p in norm_parameters(name, hidden, dtype)),
    )


def read_config(fields: Mapping[str, object]) -> Falcon:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    named = {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024, **fields}
    grouped = bool(named.get("new_decoder_architecture"))
    hidden, heads = integer(named, "hidden_size"), integer(named, "num_attention_heads")
    for key, own, usual in (
        ("num_key_value_heads", "num_kv_heads", heads),
        ("intermediate_size", "ffn_hidden_size", 4 * hidden),
    ):
        named[key] = usual if named.get(own) is None else integer(named, own)
    named["hidden_act"] = named.get("activation", "gelu")
    config = decoder_config({key: value for key, value in named.items() if key != "head_dim"}, tie_word_embeddings=True)
    check_supported(config, UNGATED, dropout=True)
    for key, works in (("alibi", False), ("bias", False), ("parallel_attn", True), ("multi_query", True)):
        given = config.fields.get(key, works)
        if bool(given) != works and not (key == "multi_query" and grouped):
            raise Unsupported(
                f"model.{key}: {str(given).lower()} is not supported yet for falcon; {str(works).lower()} is"
            )
    if config.head_dim * heads != hidden:
        raise InputError("model: the heads of falcon make up hidden_size")
    norms = integer(config.fields, "num_ln_in_parallel_attn", 2 if grouped else 1)
    if grouped and norms > 2:
        raise InputError(f"model.num_ln_in_parallel_attn: {norms} does not run with falcon; 1 and 2 do")
    return Falcon(config, grouped, grouped and norms == 2, probability(config.fields, "hidden_dropout", 0.0))


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError and Unsupported."""
    falcon, dtype = read_config(fields), settings.dtype
    config = falcon.decoder
    if settings.attention != "sdpa":
        raise Unsupported(f"attention: {settings.attention} is not supported yet for falcon; sdpa is")
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, falcon, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("layer", settings.technique)
    arguments = layer_inputs(inner, call, INPUTS)
    hidden = layer(
        inner,
        falcon,
        settings,
        arguments["hidden_states"],
        arguments["cos"],
        arguments["sin"],
        arguments["attention_mask"],
    )
    table = (config.vocab_size, config.hidden_size)
    tail = [*norm_parameters("ln_f", config.hidden_size, dtype)]
    tail += [
        Parameter(f"rotary_emb.{name}", (config.head_dim // 2,), "fp32", trainable=False, buffer=True)
        for name in ("inv_freq", "original_inv_freq")
    ]
    tail += head_parameters(table, dtype, config.tie_word_embeddings)
    return Model(
        before=(Parameter("word_embeddings.weight", table, dtype, module="embedding"),),
        layers=(layer_parameters(falcon, dtype),),
        after=tuple(tail),
        pattern=(0,) * config.num_hidden_layers,
        outer=outer,
        layer_graphs=(inner.finish(hidden),),
        settings=settings,
        hold_inputs=HOLD_POSITIONS_FIRST,
    )


release_in_slot_order(__name__)
