"""GLM and GLM-4 (transformers/models/{glm,glm4}/modeling_*.py): rotary tables interleaved over a part of each head,
fused gate and up, more norms.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config
from memsim.models.common.dynamic_rope import rotary_dim
from memsim.models.common.layers import pre_norm
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_partial_rotary_pos_emb
from memsim.models.phi3 import mlp

DEFAULTS: dict[str, object] = {"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True}
NORMS = {
    "glm": ("input_layernorm", "post_attention_layernorm"),
    "glm4": ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
}


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
    """GlmAttention.forward, Glm4Attention.forward."""
    with b.module("self_attn"):
        query_states, key_states, value_states = query_key_value(
            b, config, hidden_states, settings.dtype, config.attention_bias
        )
        query_states, key_states = apply_partial_rotary_pos_emb(b, query_states, key_states, cos, sin, neighbours=True)
        return attend(b, config, settings, query_states, key_states, value_states, mask, False)


@module_call
def glm4_layer(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Glm4DecoderLayer.forward."""
    dtype = settings.dtype
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "input_layernorm", dtype)
    hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
    hidden_states = rms_norm(b, hidden_states, "post_self_attn_layernorm", dtype)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "post_attention_layernorm", dtype)
    hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = rms_norm(b, hidden_states, "post_mlp_layernorm", dtype)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    return hidden_states


LAYERS = {"glm": pre_norm(self_attention, mlp), "glm4": glm4_layer}


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows: list[Parameter] = []
    for name, out in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        rows += linear_parameters(f"self_attn.{name}", out, hidden, dtype, config.attention_bias)
    rows += linear_parameters("self_attn.o_proj", hidden, q, dtype)
    rows += linear_parameters("mlp.gate_up_proj", 2 * inner, hidden, dtype)
    rows += linear_parameters("mlp.down_proj", hidden, inner, dtype)
    return tuple(
        rows + [Parameter(f"{name}.weight", (hidden,), dtype, module="norm") for name in NORMS[config.model_type]]
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = decoder_config(fields, **DEFAULTS)
    check_supported(config, dropout=True)
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype), rotary_dim=rotary_dim(config, 0.5))
    return assemble(config, settings, parts, LAYERS[config.model_type], layer_parameters(config, settings.dtype))


release_in_slot_order(__name__)
