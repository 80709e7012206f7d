"""OLMo (transformers/models/olmo/modeling_olmo.py): a Llama whose norms have no weights, with fp32 rotary tables and
clipped queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config
from memsim.models.common.layers import pre_norm
from memsim.models.common.parameters import attention_parameters, mlp_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.llama import mlp
from memsim.models.olmo2 import apply_rotary_pos_emb


@module_call
def layer_norm(b: Builder, hidden_states: Tensor, name: str, dtype: str) -> Tensor:
    """OlmoLayerNorm.forward."""
    with b.module(name):
        orig_dtype = hidden_states.dtype
        return F.to(b, b.op("layer_norm", F.to(b, hidden_states, "fp32")), orig_dtype)


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
    """OlmoAttention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        d, q, kv, bias = config.head_dim, config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        query_states = F.linear(b, hidden_states, "q_proj", q * d, settings.dtype, bias)
        key_states = F.linear(b, hidden_states, "k_proj", kv * d, settings.dtype, bias)
        value_states = F.linear(b, hidden_states, "v_proj", kv * d, settings.dtype, bias)
        if config.fields.get("clip_qkv") is not None:
            query_states = b.op("clamp_", query_states, limits=2)
            key_states = b.op("clamp_", key_states, limits=2)
            value_states = b.op("clamp_", value_states, limits=2)
        query_states = F.transpose(b, b.op("view", query_states, shape=(batch, sequence, q, d)), 1, 2)
        key_states = F.transpose(b, b.op("view", key_states, shape=(batch, sequence, kv, d)), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=(batch, sequence, kv, d)), 1, 2)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, bias)


decoder_layer = pre_norm(self_attention, mlp, layer_norm)


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises Unsupported."""
    config = decoder_config(fields)
    check_supported(config, dropout=True)
    if config.fields.get("clip_qkv") is not None and config.attention_bias:
        raise Unsupported(
            f"model.clip_qkv: {config.fields['clip_qkv']} with model.attention_bias is not supported; null is, or "
            "attention_bias: false"
        )
    dtype = settings.dtype
    parameters = (
        *attention_parameters(config, dtype),
        *mlp_parameters("mlp", config.hidden_size, config.intermediate_size, dtype),
    )
    parts = Parts(lambda b, x, name: layer_norm(b, x, name, dtype), unweighted=True, rotary_in_fp32=True)
    return assemble(config, settings, parts, decoder_layer, parameters)


release_in_slot_order(__name__)
