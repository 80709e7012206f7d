"""GPT-2 (transformers/models/gpt2/modeling_gpt2.py): learned positions, Conv1D, LayerNorm, dropouts."""

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
from memsim.models.common.activations import UNGATED, new_gelu
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.attention import sdpa
from memsim.models.common.config import integer, probability
from memsim.models.common.flash_attention import flash_attention_forward
from memsim.models.common.losses import causal_lm_loss, cross_entropy, shifted
from memsim.models.common.masks import causal_mask
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.tied_head import head_parameters

NAMES = ("hidden_states", "position_ids", "attention_mask")
# keyword arguments first, then positional ones from their end
HOLD = ("position_ids", "attention_mask", "hidden_states")


@dataclass(frozen=True)
class Gpt2:
    """The fields that decide what executes; p are probabilities of dropout."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    activation: str
    attention_p: float
    embedding_p: float
    residual_p: float
    tied: bool


@module_call
def conv1d(b: Builder, x: Tensor, name: str, out_features: int, dtype: str) -> Tensor:
    """Conv1D.forward, or that of the Linear that stands in its place where weights are quantized."""
    if b.technique.quantizes:
        return F.linear(b, x, name, out_features, dtype, bias=True)
    with b.module(name):
        path = ".".join(b.path)
        weight = b.parameter(f"{path}.weight", (x.shape[-1], out_features), dtype, True)
        bias = b.parameter(f"{path}.bias", (out_features,), dtype, True)
        return b.op("conv1d", x, weight, bias, module=path)


def eager(
    b: Builder, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward: the softmax in the model's dtype, the result not contiguous."""
    attn_weights = b.op("mul_scalar", F.matmul(b, query, F.transpose(b, key, 2, 3)))
    if mask is not None:
        attn_weights = b.op("add", attn_weights, mask)
    attn_weights = b.op("softmax", attn_weights)
    attn_weights = F.to(b, attn_weights, value.dtype)
    attn_weights = dropout(b, attn_weights, p)
    attn_output = F.matmul(b, attn_weights, value)
    attn_output = F.transpose(b, attn_output, 1, 2)
    return attn_output, attn_weights


def eager_by_buffer(
    b: Builder, query: Tensor, key: Tensor, value: Tensor, positions: int, p: float
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward where the causal mask is a buffer of the layer."""
    attn_weights = F.matmul(b, query, F.transpose(b, key, 2, 3))
    attn_weights = b.op("div", attn_weights, F.create(b, "scale", (), attn_weights.dtype))
    bias = b.parameter("attn.bias", (positions, positions), "bool", False)
    causal_mask = b.op("slice", b.op("slice", bias, dim=0, length=query.shape[2]), length=query.shape[2])
    mask_value = F.create(b, "mask_value", (), attn_weights.dtype)
    attn_weights = b.op("where_else", attn_weights, causal_mask, label="where")
    attn_weights = b.op("softmax", attn_weights)
    attn_weights = F.to(b, attn_weights, value.dtype)
    attn_weights = dropout(b, attn_weights, p)
    attn_output = F.matmul(b, attn_weights, value)
    attn_output = F.transpose(b, attn_output, 1, 2)
    del causal_mask
    del mask_value
    return attn_output, attn_weights


@module_call
def self_attention(
    b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """GPT2Attention.forward."""
    with b.module("attn"):
        batch, sequence, hidden = hidden_states.shape
        heads = (batch, sequence, config.heads, hidden // config.heads)
        query_states, key_states, value_states = b.run(
            "chunk", conv1d(b, hidden_states, "c_attn", 3 * hidden, settings.dtype), parts=3
        )
        first = settings.stack.dense_causal_mask  # whether queries come first
        query_states = F.transpose(b, b.op("view", query_states, shape=heads), 1, 2) if first else query_states
        key_states = F.transpose(b, b.op("view", key_states, shape=heads), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=heads), 1, 2)
        query_states = query_states if first else F.transpose(b, b.op("view", query_states, shape=heads), 1, 2)
        attn_weights = None
        with b.core(query_states, key_states, value_states, mask):
            if settings.attention == "eager" and settings.stack.attention_has_buffers:
                attn_output, attn_weights = eager_by_buffer(
                    b, query_states, key_states, value_states, config.positions, config.attention_p
                )
            elif settings.attention == "eager":
                attn_output, attn_weights = eager(b, query_states, key_states, value_states, mask, config.attention_p)
            elif settings.attention == "flash_attention_2":
                attn_output = flash_attention_forward(
                    b, settings, query_states, key_states, value_states, mask, config.attention_p
                )
            else:
                attn_output = sdpa(b, settings, query_states, key_states, value_states, mask, 1, config.attention_p)
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, hidden))
        attn_output = conv1d(b, attn_output, "c_proj", hidden, settings.dtype)
        attn_output = dropout(b, attn_output, config.residual_p)
        return attn_output, None if settings.stack.layers_return_tuples else attn_weights


@module_call
def mlp(b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor) -> Tensor:
    """GPT2MLP.forward."""
    with b.module("mlp"):
        hidden_states = conv1d(b, hidden_states, "c_fc", config.inner, settings.dtype)
        hidden_states = (
            new_gelu(b, hidden_states) if config.activation == "gelu_new" else b.op(config.activation, hidden_states)
        )
        hidden_states = conv1d(b, hidden_states, "c_proj", config.hidden, settings.dtype)
        hidden_states = dropout(b, hidden_states, config.residual_p)
        return hidden_states


@module_call
def block(b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """GPT2Block.forward."""
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "ln_1", settings.dtype)
    attn_output, _ = self_attention(b, config, settings, hidden_states, mask)
    hidden_states = b.op("add", attn_output, residual, label="residual")
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "ln_2", settings.dtype)
    feed_forward_hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = b.op("add", residual, feed_forward_hidden_states, label="residual")
    return hidden_states


@module_call
def model(b: Builder, config: Gpt2, settings: Settings, input_ids: Tensor) -> Tensor:
    """GPT2Model.forward; returns last_hidden_state [B, S, H]."""
    wte = b.parameter("wte.weight", (config.vocabulary, config.hidden), settings.dtype, True)
    wpe = b.parameter("wpe.weight", (config.positions, config.hidden), settings.dtype, True)
    old = settings.stack.dense_causal_mask  # which makes positions first, and no mask without padding
    position_ids = F.create(b, "arange", (settings.sequence,), "int64") if old else None
    inputs_embeds = b.op("embedding", input_ids, wte, label="wte", input_embeddings=True)
    if position_ids is None:
        position_ids = F.create(b, "arange", (settings.sequence,), "int64")
        position_ids = F.create(b, "positions", (settings.sequence,), "int64")
    position_ids = b.op("view", position_ids, shape=(1, settings.sequence))
    position_embeds = b.op("embedding", position_ids, wpe, label="wpe")
    hidden_states = b.op("add", inputs_embeds, position_embeds)
    mask = None if old else causal_mask(b, settings, inputs_embeds.dtype, position_ids)
    hidden_states = dropout(b, hidden_states, config.embedding_p)
    positions = {} if old else {"position_ids": position_ids}
    given = {"hidden_states": hidden_states, **positions, **({} if mask is None else {"attention_mask": mask})}
    positions.clear()
    del hidden_states
    hidden_states = F.layers(b, given)
    outputs = hidden_states if settings.stack.layers_return_tuples else None  # noqa: F841
    hidden_states = layer_norm(b, hidden_states, "ln_f", settings.dtype)
    del position_ids  # arguments of forward die before its other locals
    del inputs_embeds
    del position_embeds
    del mask
    return hidden_states


@module_call
def causal_lm(b: Builder, config: Gpt2, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """GPT2LMHeadModel.forward with labels; returns the loss."""
    hidden_states = model(b, config, settings, input_ids)
    weight = b.parameter(
        "wte.weight" if config.tied else "lm_head.weight", (config.vocabulary, config.hidden), settings.dtype, True
    )
    logits = b.op("linear", hidden_states, weight, label="lm_head", module="lm_head")
    if settings.stack.loss_slices_logits:  # here, and in the dtype that they have
        shift_logits, shift_labels = shifted(b, settings, logits, labels)
        tokens = shift_logits.shape[0] * shift_logits.shape[1]
        loss = cross_entropy(
            b,
            b.op("view", shift_logits, shape=(tokens, config.vocabulary)),
            b.op("view", shift_labels, shape=(tokens,)),
        )
        del hidden_states
        del shift_logits
        del shift_labels
        return loss
    loss = causal_lm_loss(b, settings, logits, labels)
    return loss


def layer_parameters(config: Gpt2, settings: Settings, quantizes: bool) -> tuple[Parameter, ...]:
    """A block's parameters in module order; of some stacks buffers for a causal mask among them."""
    h, dtype, kind = config.hidden, settings.dtype, "linear" if quantizes else "conv1d"
    mask = [
        Parameter("attn.bias", (config.positions, config.positions), "bool", trainable=False, buffer=True),
        Parameter("attn.masked_bias", (), settings.created, trainable=False, buffer=True),
    ]

    def conv(name: str, inputs: int, out: int) -> tuple[Parameter, Parameter]:
        shape = (out, inputs) if quantizes else (inputs, out)
        return Parameter(f"{name}.weight", shape, dtype, module=kind), Parameter(
            f"{name}.bias", (out,), dtype, module=kind
        )

    return (
        *norm_parameters("ln_1", h, dtype),
        *(mask if settings.stack.attention_has_buffers else ()),
        *conv("attn.c_attn", h, 3 * h),
        *conv("attn.c_proj", h, h),
        *norm_parameters("ln_2", h, dtype),
        *conv("mlp.c_fc", h, config.inner),
        *conv("mlp.c_proj", config.inner, h),
    )


def read_config(fields: Mapping[str, object]) -> Gpt2:
    """The fields, by GPT-2's own names or by the usual ones. Raises InputError and Unsupported."""
    both = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    given = {**fields, **{own: fields[usual] for own, usual in both.items() if usual in fields and own not in fields}}
    hidden, heads = integer(given, "n_embd", 768), integer(given, "n_head", 12)
    if hidden % heads:
        raise InputError(f"model.n_head: {heads} heads do not divide n_embd {hidden}")
    for key in ("reorder_and_upcast_attn", "add_cross_attention"):
        if given.get(key):
            raise Unsupported(f"model.{key}: true is not supported yet; false is")
    activation = str(given.get("activation_function", "gelu_new"))
    if activation not in UNGATED:
        raise Unsupported(f"model.activation_function: {activation} is not supported yet; {', '.join(UNGATED)} are")
    inner = given.get("n_inner")
    return Gpt2(
        hidden=hidden,
        inner=4 * hidden if inner is None else integer(given, "n_inner"),
        layers=integer(given, "n_layer", 12),
        heads=heads,
        vocabulary=integer(given, "vocab_size", 50257),
        positions=integer(given, "n_positions", 1024),
        activation=UNGATED[activation],
        attention_p=probability(given, "attn_pdrop", 0.1),
        embedding_p=probability(given, "embd_pdrop", 0.1),
        residual_p=probability(given, "resid_pdrop", 0.1),
        tied=bool(given.get("tie_word_embeddings", True)),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config, dtype = read_config(fields), settings.dtype
    if settings.sequence > config.positions:
        raise InputError(
            f"batch.sequence: {settings.sequence} tokens are more than the {config.positions} positions that gpt2 has"
        )
    if settings.padded and settings.stack.dense_causal_mask:
        raise Unsupported(
            f"batch.padding: {settings.padding} of gpt2 with stack {settings.stack.name} is not supported yet; 0 is"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, config, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("block", settings.technique)
    arguments = layer_inputs(inner, call, NAMES)
    graph = inner.finish(block(inner, config, settings, arguments["hidden_states"], arguments.get("attention_mask")))
    table = (config.vocabulary, config.hidden)
    return Model(
        before=(
            Parameter("wte.weight", table, dtype, module="embedding"),
            Parameter("wpe.weight", (config.positions, config.hidden), dtype, module="embedding"),
        ),
        layers=(layer_parameters(config, settings, settings.technique.quantizes),),
        after=(*norm_parameters("ln_f", config.hidden, dtype), *head_parameters(table, dtype, config.tied)),
        pattern=(0,) * config.layers,
        outer=outer,
        layer_graphs=(graph,),
        settings=settings,
        hold_inputs=("hidden_states", "attention_mask") if settings.stack.checkpoints_positional_arguments else HOLD,
        positional=2,
    )


release_in_slot_order(__name__)
