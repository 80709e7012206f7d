"""Phi-1, Phi-1.5 and Phi-2 (transformers/models/phi/modeling_phi.py): attention and MLP side by side after one
LayerNorm, partial rotary, biases everywhere.
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
from memsim.models.common.activations import UNGATED, new_gelu
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, probability
from memsim.models.common.dynamic_rope import rotary_dim
from memsim.models.common.layers import Layer
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb, part


def act(b: Builder, config: DecoderConfig, x: Tensor) -> Tensor:
    """ACT2FN[hidden_act](x)."""
    name = UNGATED[config.hidden_act]
    return new_gelu(b, x) if name == "gelu_new" else b.op(name, x)


@module_call
def self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """PhiAttention.forward."""
    with b.module("self_attn"):
        rotary, d, dtype = cos.shape[-1], config.head_dim, settings.dtype

        query_states, key_states, value_states = query_key_value(b, config, hidden_states, dtype, True)
        if config.fields.get("qk_layernorm"):
            query_states = layer_norm(b, query_states, "q_layernorm", dtype)
            key_states = layer_norm(b, key_states, "k_layernorm", dtype)
        query_rot, query_pass = part(b, query_states, rotary), b.op("slice", query_states, length=d - rotary)
        key_rot, key_pass = part(b, key_states, rotary), b.op("slice", key_states, length=d - rotary)
        query_rot, key_rot = apply_rotary_pos_emb(b, query_rot, key_rot, cos, sin)
        query_states = b.op("cat", query_rot, query_pass)
        key_states = b.op("cat", key_rot, key_pass)
        return attend(b, config, settings, query_states, key_states, value_states, mask, True, name="dense")


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """PhiMLP.forward."""
    with b.module("mlp"):
        hidden_states = F.linear(b, hidden_states, "fc1", config.intermediate_size, settings.dtype, True)
        hidden_states = act(b, config, hidden_states)
        hidden_states = F.linear(b, hidden_states, "fc2", config.hidden_size, settings.dtype, True)
        return hidden_states


def layer_with(p: float) -> Layer:
    """A decoder layer whose dropouts have this probability."""

    @module_call
    def layer(
        b: Builder,
        config: DecoderConfig,
        settings: Settings,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """PhiDecoderLayer.forward."""
        residual = hidden_states
        hidden_states = layer_norm(b, hidden_states, "input_layernorm", settings.dtype)
        attn_outputs, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
        attn_outputs = dropout(b, attn_outputs, p)
        feed_forward_hidden_states = dropout(b, mlp(b, config, settings, hidden_states), p)
        hidden_states = b.op("add", b.op("add", attn_outputs, feed_forward_hidden_states), residual, label="residual")
        return hidden_states

    return layer


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows: list[Parameter] = []
    for name, out, inputs in (
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("dense", hidden, q),
    ):
        rows += linear_parameters(f"self_attn.{name}", out, inputs, dtype, True)
    if config.fields.get("qk_layernorm"):
        rows += [p for name in ("q_layernorm", "k_layernorm") for p in norm_parameters(f"self_attn.{name}", d, dtype)]
    rows += linear_parameters("mlp.fc1", inner, hidden, dtype, True)
    rows += linear_parameters("mlp.fc2", hidden, inner, dtype, True)
    return (*rows, *norm_parameters("input_layernorm", hidden, dtype))


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config, dtype = decoder_config(fields, hidden_act="gelu_new"), settings.dtype
    check_supported(config, UNGATED, dropout=True)
    if config.fields.get("qk_layernorm") and config.head_dim * config.num_attention_heads != config.hidden_size:
        raise InputError("model.qk_layernorm: true does not run with phi where the heads do not make up hidden_size")
    parts = Parts(
        lambda b, x, _: layer_norm(b, x, "final_layernorm", dtype),
        dropout=probability(config.fields, "embd_pdrop", 0.0),
        drops_embeddings=True,
        final=norm_parameters("final_layernorm", config.hidden_size, dtype),
        rotary_first=True,
        head_bias=True,
        rotary_dim=rotary_dim(config, 0.5),
    )
    layer = layer_with(probability(config.fields, "resid_pdrop", 0.0))
    return assemble(config, settings, parts, layer, layer_parameters(config, dtype), HOLD_POSITIONS_FIRST)


release_in_slot_order(__name__)
