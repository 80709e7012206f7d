"""Bloom (transformers/models/bloom/modeling_bloom.py): scores that fall with distance (ALiBi), one projection for q, k
and v, a GeLU written in Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common import tied_head
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.config import integer, probability
from memsim.models.common.masks import causal_mask
from memsim.models.common.norms import dropout_add, layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.tied_head import head_parameters

NAMES = ("hidden_states", "attention_mask", "alibi")
HOLD = ("attention_mask", "alibi", "hidden_states")


@dataclass(frozen=True)
class Bloom:
    """The fields that decide what executes."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    attention_p: float
    hidden_p: float
    post_norm: bool  # residuals are what the norms give
    tied: bool


@module_call
def self_attention(
    b: Builder, bloom: Bloom, settings: Settings, hidden_states: Tensor, residual: Tensor, alibi: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """BloomAttention.forward."""
    with b.module("self_attention"):
        batch, length, hidden = hidden_states.shape
        heads, d = bloom.heads, bloom.hidden // bloom.heads
        fused_qkv = F.linear(b, hidden_states, "query_key_value", 3 * hidden, settings.dtype, True)
        query_layer, key_layer, value_layer = split(b, fused_qkv, (batch, length, heads, d))
        query_layer = F.reshape(b, query_layer, batch * heads, length, d)
        key_layer = F.transpose(b, F.reshape(b, key_layer, batch * heads, length, d), 1, 2)
        value_layer = F.reshape(b, value_layer, batch * heads, length, d)
        attention_scores = b.op("baddbmm", alibi, query_layer, key_layer, alpha=0.0)
        attn_weights = b.op("view", attention_scores, shape=(batch, heads, length, length))
        attn_weights = b.op("add", attn_weights, mask)
        attention_probs = F.to(b, F.softmax(b, attn_weights, "fp32"), query_layer.dtype)
        attention_probs = dropout(b, attention_probs, bloom.attention_p)
        attention_probs_reshaped = b.op("view", attention_probs, shape=(batch * heads, length, length))
        context_layer = b.op("matmul", attention_probs_reshaped, value_layer)
        context_layer = F.transpose(b, b.op("view", context_layer, shape=(batch, heads, length, d)), 1, 2)
        context_layer = F.reshape(b, context_layer, batch, length, hidden)
        output_tensor = F.linear(b, context_layer, "dense", hidden, settings.dtype, True)
        output_tensor = dropout_add(b, output_tensor, residual, bloom.hidden_p)
        return output_tensor, attention_probs


def split(b: Builder, fused_qkv: Tensor, shape: tuple[int, int, int, int]) -> list[Tensor]:
    """BloomAttention._reshape: views [B, H, S, D]."""
    batch, length, heads, d = shape
    fused_qkv = b.op("view", fused_qkv, shape=(batch, length, heads, 3, d))
    parts = [b.op("view", b.op("slice", fused_qkv, dim=3, length=1), shape=shape) for _ in range(3)]
    return [F.transpose(b, parts.pop(0), 1, 2) for _ in range(3)]


@module_call
def mlp(b: Builder, bloom: Bloom, settings: Settings, hidden_states: Tensor, residual: Tensor) -> Tensor:
    """BloomMLP.forward."""
    with b.module("mlp"):
        hidden_states = b.op(
            "python_gelu", F.linear(b, hidden_states, "dense_h_to_4h", 4 * bloom.hidden, settings.dtype, True)
        )
        intermediate_output = F.linear(b, hidden_states, "dense_4h_to_h", bloom.hidden, settings.dtype, True)
        output = dropout_add(b, intermediate_output, residual, bloom.hidden_p)
        return output


@module_call
def block(
    b: Builder, bloom: Bloom, settings: Settings, hidden_states: Tensor, alibi: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """BloomBlock.forward."""
    layernorm_output = layer_norm(b, hidden_states, "input_layernorm", settings.dtype)
    residual = layernorm_output if bloom.post_norm else hidden_states
    attention_output, attn_weights = self_attention(b, bloom, settings, layernorm_output, residual, alibi, mask)
    layernorm_output = layer_norm(b, attention_output, "post_attention_layernorm", settings.dtype)
    residual = layernorm_output if bloom.post_norm else attention_output
    output = mlp(b, bloom, settings, layernorm_output, residual)
    return output, attn_weights


@module_call
def alibi_slopes(b: Builder, heads: int) -> Tensor:
    """_get_alibi_slopes: [H] in fp32."""
    closest = 2 ** math.floor(math.log2(heads))
    base = F.create(b, "full", (), "fp32")
    powers = F.create(b, "arange", (closest,), "int32")
    slopes = F.create(b, "pow", (closest,), "fp32")
    if closest != heads:
        extra_base = F.create(b, "full", (), "fp32")
        extra_powers = F.create(b, "arange", (heads - closest,), "int32")
        extra = F.create(b, "pow", (heads - closest,), "fp32")
        slopes, before = b.op("cat", slopes, extra), slopes
        del extra
        del before
        del base
        del powers
        del extra_base
        del extra_powers
        return slopes
    del base
    del powers
    return slopes


@module_call
def build_alibi_tensor(b: Builder, bloom: Bloom, settings: Settings, input_ids: Tensor, dtype: str) -> Tensor:
    """build_alibi_tensor, of a mask that is like the tokens' ids."""
    batch, length = settings.batch, settings.sequence
    slopes = alibi_slopes(b, bloom.heads)
    arange_tensor = b.op("mul", b.op("add_scalar", b.op("cumsum", input_ids)), input_ids)
    alibi = F.create(b, "mul", (batch, bloom.heads, length), "fp32")
    alibi = b.op("view", alibi, shape=(batch * bloom.heads, 1, length))
    result = F.to(b, alibi, dtype)
    del slopes
    del arange_tensor
    return result


@module_call
def model(b: Builder, bloom: Bloom, settings: Settings, input_ids: Tensor) -> Tensor:
    """BloomModel.forward; returns last_hidden_state [B, S, H]."""
    batch, length = settings.batch, settings.sequence
    weight = b.parameter("word_embeddings.weight", (bloom.vocabulary, bloom.hidden), settings.dtype, True)
    inputs_embeds = b.op("embedding", input_ids, weight, label="word_embeddings", input_embeddings=True)
    hidden_states = layer_norm(b, inputs_embeds, "word_embeddings_layernorm", settings.dtype)
    slopes = None
    with b.module("alibi"), b.no_grad():
        if settings.padded:
            alibi = build_alibi_tensor(b, bloom, settings, input_ids, hidden_states.dtype)
        else:
            slopes = alibi_slopes(b, bloom.heads)
            positions = F.create(b, "arange", (length,), "int64")
            alibi = F.create(b, "mul", (bloom.heads, 1, length), "fp32")
            del positions
            alibi = F.to(b, F.create(b, "repeat", (batch * bloom.heads, 1, length), "fp32"), hidden_states.dtype)
    mask = causal_mask(b, settings, inputs_embeds.dtype, None)
    assert mask is not None
    probs = ((batch, bloom.heads, length, length), b.autocast or hidden_states.dtype)
    hidden_states, weights = b.run("layers", hidden_states, mask, alibi, names=NAMES, trains=True, extra=probs)
    outputs = hidden_states, weights
    del weights
    hidden_states = layer_norm(b, hidden_states, "ln_f", settings.dtype)
    del inputs_embeds
    del slopes
    del alibi
    del mask
    del outputs
    return hidden_states


def causal_lm(b: Builder, bloom: Bloom, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """BloomForCausalLM.forward with labels; returns the loss."""
    table = (bloom.vocabulary, bloom.hidden)
    return tied_head.causal_lm(
        b, settings, lambda: model(b, bloom, settings, input_ids), labels, "word_embeddings.weight", table, bloom.tied
    )


def layer_parameters(bloom: Bloom, dtype: str) -> tuple[Parameter, ...]:
    """A block's parameters in module order."""
    h = bloom.hidden
    return (
        *norm_parameters("input_layernorm", h, dtype),
        *linear_parameters("self_attention.query_key_value", 3 * h, h, dtype, True),
        *linear_parameters("self_attention.dense", h, h, dtype, True),
        *norm_parameters("post_attention_layernorm", h, dtype),
        *linear_parameters("mlp.dense_h_to_4h", 4 * h, h, dtype, True),
        *linear_parameters("mlp.dense_4h_to_h", h, 4 * h, dtype, True),
    )


def read_config(fields: Mapping[str, object]) -> Bloom:
    """The fields, by Bloom's own names or by the usual ones. Raises InputError and Unsupported."""
    both = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "hidden_size": "n_embed"}
    given = {**fields, **{own: fields[usual] for own, usual in both.items() if fields.get(usual) is not None}}
    hidden, heads = integer(given, "hidden_size", 64), integer(given, "n_head", 8)
    if hidden % heads:
        raise InputError(f"model.n_head: {heads} heads do not divide hidden_size {hidden}")
    if given.get("slow_but_exact") and integer(given, "pretraining_tp", 1) > 1:
        raise Unsupported("model.slow_but_exact: true is not supported; false is")
    return Bloom(
        hidden=hidden,
        layers=integer(given, "n_layer", 2),
        heads=heads,
        vocabulary=integer(given, "vocab_size", 250880),
        attention_p=probability(given, "attention_dropout", 0.0),
        hidden_p=probability(given, "hidden_dropout", 0.0),
        post_norm=bool(given.get("apply_residual_connection_post_layernorm")),
        tied=bool(given.get("tie_word_embeddings", True)),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError."""
    bloom, dtype = read_config(fields), settings.dtype
    if settings.attention != "eager":
        raise InputError(
            f"attention: {settings.attention} does not run with bloom, whose scores fall with distance; eager does"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, bloom, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("block", settings.technique)
    arguments = layer_inputs(inner, call, NAMES)
    outputs = block(inner, bloom, settings, arguments["hidden_states"], arguments["alibi"], arguments["attention_mask"])
    table = (bloom.vocabulary, bloom.hidden)
    return Model(
        before=(
            Parameter("word_embeddings.weight", table, dtype, module="embedding"),
            *norm_parameters("word_embeddings_layernorm", bloom.hidden, dtype),
        ),
        layers=(layer_parameters(bloom, dtype),),
        after=(*norm_parameters("ln_f", bloom.hidden, dtype), *head_parameters(table, dtype, bloom.tied)),
        pattern=(0,) * bloom.layers,
        outer=outer,
        layer_graphs=(inner.finish(*outputs),),
        settings=settings,
        hold_inputs=HOLD,
    )


release_in_slot_order(__name__)
