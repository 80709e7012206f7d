"""StarCoder2 (transformers/models/starcoder2/modeling_starcoder2.py): Llama's layers with LayerNorm, an MLP of two
projections, and dropouts.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.activations import UNGATED
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, probability
from memsim.models.common.layers import pre_norm
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb
from memsim.models.phi import act


def has_bias(config: DecoderConfig) -> bool:
    """Whether linear modules have one."""
    return config.fields.get("use_bias") is not False


def residual_dropout(config: DecoderConfig) -> float:
    """Probability of the dropout after attention and after the MLP."""
    return probability(config.fields, "residual_dropout", 0.0)


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
    """Starcoder2Attention.forward."""
    with b.module("self_attn"):
        query_states, key_states, value_states = query_key_value(
            b, config, hidden_states, settings.dtype, has_bias(config)
        )
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        attn_output, attn_weights = attend(
            b, config, settings, query_states, key_states, value_states, mask, has_bias(config)
        )
        attn_output = dropout(b, attn_output, residual_dropout(config))
        return attn_output, attn_weights


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """Starcoder2MLP.forward."""
    with b.module("mlp"):
        hidden_states = F.linear(b, hidden_states, "c_fc", config.intermediate_size, settings.dtype, has_bias(config))
        hidden_states = act(b, config, hidden_states)
        hidden_states = F.linear(b, hidden_states, "c_proj", config.hidden_size, settings.dtype, has_bias(config))
        hidden_states = dropout(b, hidden_states, residual_dropout(config))
        return hidden_states


decoder_layer = pre_norm(self_attention, mlp, layer_norm)


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d, bias = config.hidden_size, config.intermediate_size, config.head_dim, has_bias(config)
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows: list[Parameter] = []
    for name, out, inputs in (
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
    ):
        rows += linear_parameters(f"self_attn.{name}", out, inputs, dtype, bias)
    rows += linear_parameters("mlp.c_fc", inner, hidden, dtype, bias)
    rows += linear_parameters("mlp.c_proj", hidden, inner, dtype, bias)
    return (
        *rows,
        *norm_parameters("input_layernorm", hidden, dtype),
        *norm_parameters("post_attention_layernorm", hidden, dtype),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    defaults = {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2, "tie_word_embeddings": True}
    config, dtype = decoder_config(fields, **defaults), settings.dtype
    check_supported(config, UNGATED, dropout=True)
    parts = Parts(
        lambda b, x, name: layer_norm(b, x, name, dtype),
        dropout=probability(config.fields, "embedding_dropout", 0.0),
        final=norm_parameters("norm", config.hidden_size, dtype),
    )
    return assemble(config, settings, parts, decoder_layer, layer_parameters(config, dtype), HOLD_POSITIONS_FIRST)


release_in_slot_order(__name__)
