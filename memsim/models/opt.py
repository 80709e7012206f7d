"""OPT (transformers/models/opt/modeling_opt.py): learned positions counted over the mask, LayerNorm before or after, an
MLP of flattened rows.
"""

from __future__ import annotations

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
from memsim.models.common.activations import UNGATED
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.attention import attend
from memsim.models.common.config import DecoderConfig, decoder_config, integer, probability
from memsim.models.common.masks import causal_mask
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.tied_head import head_parameters
from memsim.models.phi import act

NAMES = ("hidden_states", "position_ids", "attention_mask")
HOLD = ("attention_mask", "position_ids", "hidden_states")


@dataclass(frozen=True)
class Opt:
    """A configuration, and what of it is OPT's own."""

    decoder: DecoderConfig
    width: int  # of an embedded token, before project_in
    dropout: float
    before: bool  # whether norms come before attention and MLP
    final_norm: bool
    bias: bool
    affine: bool  # whether norms have parameters


@module_call
def layer_norm(b: Builder, opt: Opt, x: Tensor, name: str, dtype: str) -> Tensor:
    """nn.LayerNorm(x), with elementwise_affine or without."""
    with b.module(name):
        path = ".".join(b.path)
        weights = (
            [b.parameter(f"{path}.{kind}", (x.shape[-1],), dtype, True) for kind in ("weight", "bias")]
            if opt.affine
            else []
        )
        return b.op("layer_norm", x, *weights)


@module_call
def self_attention(
    b: Builder, opt: Opt, settings: Settings, hidden_states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """OPTAttention.forward."""
    config = opt.decoder
    with b.module("self_attn"):
        batch, sequence, hidden = hidden_states.shape
        heads = (batch, sequence, config.num_attention_heads, config.head_dim)
        query_states = b.op("mul_scalar", F.linear(b, hidden_states, "q_proj", hidden, settings.dtype, opt.bias))
        query_states = F.transpose(b, b.op("view", query_states, shape=heads), 1, 2)
        key_states = F.linear(b, hidden_states, "k_proj", hidden, settings.dtype, opt.bias)
        value_states = F.linear(b, hidden_states, "v_proj", hidden, settings.dtype, opt.bias)
        key_states = F.transpose(b, b.op("view", key_states, shape=heads), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=heads), 1, 2)
        return attend(b, config, settings, query_states, key_states, value_states, mask, opt.bias, name="out_proj")


@module_call
def decoder_layer(b: Builder, opt: Opt, settings: Settings, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """OPTDecoderLayer.forward."""
    config, dtype = opt.decoder, settings.dtype
    residual = hidden_states
    if opt.before:
        hidden_states = layer_norm(b, opt, hidden_states, "self_attn_layer_norm", dtype)
    hidden_states, _ = self_attention(b, opt, settings, hidden_states, mask)
    hidden_states = dropout(b, hidden_states, opt.dropout)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    if not opt.before:
        hidden_states = layer_norm(b, opt, hidden_states, "self_attn_layer_norm", dtype)
    shape = hidden_states.shape
    hidden_states = F.reshape(b, hidden_states, shape[0] * shape[1], shape[2])
    residual = hidden_states
    if opt.before:
        hidden_states = layer_norm(b, opt, hidden_states, "final_layer_norm", dtype)
    hidden_states = F.linear(b, hidden_states, "fc1", config.intermediate_size, dtype, opt.bias)
    hidden_states = act(b, config, hidden_states)
    hidden_states = F.linear(b, hidden_states, "fc2", config.hidden_size, dtype, opt.bias)
    hidden_states = dropout(b, hidden_states, opt.dropout)
    hidden_states = b.op("view", b.op("add", residual, hidden_states, label="residual"), shape=shape)
    if not opt.before:
        hidden_states = layer_norm(b, opt, hidden_states, "final_layer_norm", dtype)
    return hidden_states


@module_call
def positions(b: Builder, settings: Settings, input_ids: Tensor) -> tuple[Tensor | None, Tensor]:
    """OPTDecoder.forward's position_attention_mask, where the batch has no mask, and position_ids [B, S]: how many
    tokens that are no padding came before.
    """
    with b.module("positions"), b.no_grad():
        if settings.padded:
            position_ids = b.op("cumsum", input_ids)  # of the mask, which is like them
            position_ids = b.op("add_scalar", b.op("mul", position_ids, input_ids))
            return None, position_ids
        position_attention_mask = F.create(b, "ones", (settings.batch, settings.sequence), "fp32")
        position_ids = b.op("cumsum", position_attention_mask)
        position_ids = b.op(
            "cast", b.op("add_scalar", b.op("mul", position_ids, position_attention_mask)), dtype="int64"
        )
        return position_attention_mask, position_ids


@module_call
def model(b: Builder, opt: Opt, settings: Settings, input_ids: Tensor) -> Tensor:
    """OPTDecoder.forward; returns last_hidden_state [B, S, W]."""
    config, dtype = opt.decoder, settings.dtype
    weight = b.parameter("embed_tokens.weight", (config.vocab_size, opt.width), dtype, True)
    inputs_embeds = b.op("embedding", input_ids, weight, label="embed_tokens", input_embeddings=True)
    position_attention_mask, position_ids = positions(b, settings, input_ids)
    mask = causal_mask(b, settings, inputs_embeds.dtype, None)
    table = b.parameter("embed_positions.weight", (config.max_position_embeddings + 2, config.hidden_size), dtype, True)
    pos_embeds = b.op("embedding", b.op("add_scalar", position_ids), table, label="embed_positions")
    if opt.width != config.hidden_size:
        inputs_embeds = F.linear(b, inputs_embeds, "project_in", config.hidden_size, dtype)
    hidden_states = b.op("add", inputs_embeds, pos_embeds)
    given = {
        "hidden_states": hidden_states,
        "position_ids": position_ids,
        **({} if mask is None else {"attention_mask": mask}),
    }
    del hidden_states
    hidden_states = F.layers(b, given)
    if opt.final_norm:
        hidden_states = layer_norm(b, opt, hidden_states, "final_layer_norm", dtype)
    if opt.width != config.hidden_size:
        hidden_states = F.linear(b, hidden_states, "project_out", opt.width, dtype)
    del inputs_embeds  # arguments of forward die before its other locals
    del position_ids
    del position_attention_mask
    del mask
    return hidden_states


def causal_lm(b: Builder, opt: Opt, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """OPTForCausalLM.forward with labels; returns the loss."""
    table = (opt.decoder.vocab_size, opt.width)
    return tied_head.causal_lm(
        b,
        settings,
        lambda: model(b, opt, settings, input_ids),
        labels,
        "embed_tokens.weight",
        table,
        opt.decoder.tie_word_embeddings,
    )


def norm_parameters(opt: Opt, name: str, dtype: str) -> list[Parameter]:
    """Of an nn.LayerNorm."""
    return (
        [Parameter(f"{name}.{kind}", (opt.decoder.hidden_size,), dtype, module="norm") for kind in ("weight", "bias")]
        if opt.affine
        else []
    )


def layer_parameters(opt: Opt, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner = opt.decoder.hidden_size, opt.decoder.intermediate_size
    rows: list[Parameter] = []
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        rows += linear_parameters(f"self_attn.{name}", hidden, hidden, dtype, opt.bias)
    rows += norm_parameters(opt, "self_attn_layer_norm", dtype)
    rows += linear_parameters("fc1", inner, hidden, dtype, opt.bias)
    rows += linear_parameters("fc2", hidden, inner, dtype, opt.bias)
    return (*rows, *norm_parameters(opt, "final_layer_norm", dtype))


def read_config(fields: Mapping[str, object]) -> Opt:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    named = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 50272, **fields}
    named["intermediate_size"] = fields.get("ffn_dim", 3072)
    named["hidden_act"] = fields.get("activation_function", "relu")
    config = decoder_config(named, tie_word_embeddings=True)
    check_supported(config, UNGATED, dropout=True)
    if config.fields.get("layerdrop"):
        raise Unsupported(
            f"model.layerdrop: {config.fields['layerdrop']}, which leaves out layers by chance, is not supported; "
            "0.0 is"
        )
    if config.head_dim * config.num_attention_heads != config.hidden_size or config.groups != 1:
        raise InputError("model: opt has as many key-value heads as heads, and its heads make up hidden_size")
    before = config.fields.get("do_layer_norm_before") is not False
    return Opt(
        decoder=config,
        width=integer(config.fields, "word_embed_proj_dim", config.hidden_size),
        dropout=probability(config.fields, "dropout", 0.1),
        before=before,
        final_norm=before and not config.fields.get("_remove_final_layer_norm"),
        bias=config.fields.get("enable_bias") is not False,
        affine=config.fields.get("layer_norm_elementwise_affine") is not False,
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError and Unsupported."""
    opt, dtype = read_config(fields), settings.dtype
    config = opt.decoder
    if settings.sequence > config.max_position_embeddings:
        raise InputError(
            f"batch.sequence: {settings.sequence} tokens are more than the {config.max_position_embeddings} positions "
            "that opt has"
        )
    projected = opt.width != config.hidden_size
    if projected and settings.technique.rule is not None:
        raise Unsupported(
            f"model.word_embed_proj_dim: {opt.width}, which is not hidden_size, with adapters is not supported yet; "
            "method.kind: full is"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, opt, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("decoder layer", settings.technique)
    arguments = layer_inputs(inner, call, NAMES)
    graph = inner.finish(
        decoder_layer(inner, opt, settings, arguments["hidden_states"], arguments.get("attention_mask"))
    )
    table = (config.vocab_size, opt.width)
    before = [
        Parameter("embed_tokens.weight", table, dtype, module="embedding"),
        Parameter(
            "embed_positions.weight",
            (config.max_position_embeddings + 2, config.hidden_size),
            dtype,
            module="embedding",
        ),
    ]
    if projected:
        before += linear_parameters("project_out", opt.width, config.hidden_size, dtype)
        before += linear_parameters("project_in", config.hidden_size, opt.width, dtype)
    if opt.final_norm:
        before += norm_parameters(opt, "final_layer_norm", dtype)
    return Model(
        before=tuple(before),
        layers=(layer_parameters(opt, dtype),),
        after=head_parameters(table, dtype, config.tie_word_embeddings),
        pattern=(0,) * config.num_hidden_layers,
        outer=outer,
        layer_graphs=(graph,),
        settings=settings,
        hold_inputs=HOLD,
    )


release_in_slot_order(__name__)
