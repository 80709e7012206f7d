"""GPTBigCode, of StarCoder and SantaCoder (transformers/models/gpt_bigcode/modeling_gpt_bigcode.py): GPT-2 with linear
modules, one key-value head.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common import tied_head
from memsim.models.common.activations import new_gelu
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.attention import attention
from memsim.models.common.flash_attention import flash_attention_forward
from memsim.models.common.masks import causal_mask
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.tied_head import head_parameters
from memsim.models.gpt2 import Gpt2, read_config

NAMES = ("hidden_states", "attention_mask")
HOLD = ("attention_mask", "hidden_states")


@module_call
def self_attention(
    b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor, mask: Tensor | None, multi_query: bool
) -> tuple[Tensor, Tensor | None]:
    """GPTBigCodeAttention.forward."""
    with b.module("attn"):
        batch, sequence, hidden = hidden_states.shape
        heads, d = config.heads, hidden // config.heads
        kv = d if multi_query else hidden
        fused = F.linear(b, hidden_states, "c_attn", hidden + 2 * kv, settings.dtype, True)
        if multi_query:
            query, key, value = b.run(
                "chunk", b.op("view", fused, shape=(batch, 1, sequence, hidden + 2 * d)), sizes=(hidden, d, d)
            )
            del fused
            query = F.transpose(b, b.op("view", query, shape=(batch, sequence, heads, d)), 1, 2)
        else:
            query, key, value = b.run(
                "chunk", F.transpose(b, b.op("view", fused, shape=(batch, sequence, heads, 3 * d)), 1, 2), parts=3
            )
            del fused
        attn_weights = None
        if settings.attention == "flash_attention_2":
            with b.core(query, key, value, mask):
                attn_output = flash_attention_forward(
                    b, settings, query, key, value, mask, config.attention_p, told_positions=False
                )
        else:
            attn_output, attn_weights = attention(
                b, settings, query, key, value, mask, heads if multi_query else 1, p=config.attention_p
            )
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, hidden))
        attn_output = F.linear(b, attn_output, "c_proj", hidden, settings.dtype, True)
        attn_output = dropout(b, attn_output, config.residual_p)
        return attn_output, attn_weights


@module_call
def mlp(b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor) -> Tensor:
    """GPTBigCodeMLP.forward."""
    with b.module("mlp"):
        hidden_states = F.linear(b, hidden_states, "c_fc", config.inner, settings.dtype, True)
        hidden_states = (
            new_gelu(b, hidden_states) if config.activation == "gelu_new" else b.op(config.activation, hidden_states)
        )
        hidden_states = F.linear(b, hidden_states, "c_proj", config.hidden, settings.dtype, True)
        hidden_states = dropout(b, hidden_states, config.residual_p)
        return hidden_states


@module_call
def block(
    b: Builder, config: Gpt2, settings: Settings, hidden_states: Tensor, mask: Tensor | None, multi_query: bool
) -> Tensor:
    """GPTBigCodeBlock.forward."""
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "ln_1", settings.dtype)
    attn_output, _ = self_attention(b, config, settings, hidden_states, mask, multi_query)
    hidden_states = b.op("add", attn_output, residual, label="residual")
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "ln_2", settings.dtype)
    feed_forward_hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = b.op("add", residual, feed_forward_hidden_states, label="residual")
    return hidden_states


@module_call
def model(b: Builder, config: Gpt2, settings: Settings, input_ids: Tensor) -> Tensor:
    """GPTBigCodeModel.forward; returns last_hidden_state [B, S, H]."""
    wte = b.parameter("wte.weight", (config.vocabulary, config.hidden), settings.dtype, True)
    wpe = b.parameter("wpe.weight", (config.positions, config.hidden), settings.dtype, True)
    inputs_embeds = b.op("embedding", input_ids, wte, label="wte", input_embeddings=True)
    position_ids = F.positions(b, settings)
    mask = causal_mask(b, settings, inputs_embeds.dtype, position_ids)
    position_embeds = b.op("embedding", position_ids, wpe, label="wpe")
    hidden_states = b.op("add", inputs_embeds, position_embeds)
    hidden_states = dropout(b, hidden_states, config.embedding_p)
    given = {"hidden_states": hidden_states, **({} if mask is None else {"attention_mask": mask})}
    del hidden_states
    hidden_states = F.layers(b, given)
    hidden_states = layer_norm(b, hidden_states, "ln_f", settings.dtype)
    del position_ids  # arguments of forward die before its other locals
    del inputs_embeds
    del mask
    del position_embeds
    return hidden_states


def causal_lm(b: Builder, config: Gpt2, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """GPTBigCodeForCausalLM.forward with labels; returns the loss."""
    table = (config.vocabulary, config.hidden)
    return tied_head.causal_lm(
        b, settings, lambda: model(b, config, settings, input_ids), labels, "wte.weight", table, config.tied
    )


def layer_parameters(config: Gpt2, dtype: str, multi_query: bool) -> tuple[Parameter, ...]:
    """A block's parameters in module order."""
    h = config.hidden
    kv = h // config.heads if multi_query else h
    return (
        *norm_parameters("ln_1", h, dtype),
        *linear_parameters("attn.c_attn", h + 2 * kv, h, dtype, True),
        *linear_parameters("attn.c_proj", h, h, dtype, True),
        *norm_parameters("ln_2", h, dtype),
        *linear_parameters("mlp.c_fc", config.inner, h, dtype, True),
        *linear_parameters("mlp.c_proj", h, config.inner, dtype, True),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError."""
    config, dtype = read_config({"activation_function": "gelu_pytorch_tanh", **fields}), settings.dtype
    multi_query = fields.get("multi_query") is not False
    if settings.sequence > config.positions:
        raise InputError(
            f"batch.sequence: {settings.sequence} tokens are more than the {config.positions} positions that "
            "gpt_bigcode has"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, config, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("block", settings.technique)
    arguments = layer_inputs(inner, call, NAMES)
    graph = inner.finish(
        block(inner, config, settings, arguments["hidden_states"], arguments.get("attention_mask"), multi_query)
    )
    table = (config.vocabulary, config.hidden)
    return Model(
        before=(
            # a triangle that nothing reads
            Parameter("bias", (config.positions, config.positions), "bool", trainable=False, buffer=True),
            Parameter("wte.weight", table, dtype, module="embedding"),
            Parameter("wpe.weight", (config.positions, config.hidden), dtype, module="embedding"),
        ),
        layers=(layer_parameters(config, dtype, multi_query),),
        after=(*norm_parameters("ln_f", config.hidden, dtype), *head_parameters(table, dtype, config.tied)),
        pattern=(0,) * config.layers,
        outer=outer,
        layer_graphs=(graph,),
        settings=settings,
        hold_inputs=HOLD,
    )


release_in_slot_order(__name__)
