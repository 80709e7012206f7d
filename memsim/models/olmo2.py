"""OLMo-2 (transformers/models/olmo2/modeling_olmo2.py): norms after attention and MLP, norms of whole queries and keys,
fp32 rotary tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common import norms
from memsim.models.common.assemble import assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import rotate_half
from memsim.models.llama import mlp


@module_call
def rms_norm(b: Builder, settings: Settings, hidden_states: Tensor, name: str) -> Tensor:
    """Olmo2RMSNorm.forward: the weight is applied in fp32, and the product cast."""
    dtype = settings.dtype
    if settings.stack.olmo2_as_llama:
        return norms.rms_norm(b, hidden_states, name, dtype)
    with b.module(name):
        weight = b.parameter(".".join([*b.path, "weight"]), (hidden_states.shape[-1],), dtype, True)
        input_dtype = hidden_states.dtype
        hidden_states = F.to(b, hidden_states, "fp32")
        variance = b.op("mean", b.op("square", hidden_states))
        hidden_states = b.op("mul", hidden_states, b.op("rsqrt", b.op("add_scalar", variance)))
        return F.to(b, b.op("mul", weight, hidden_states), input_dtype)


def apply_rotary_pos_emb(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, H, S, D], k [B, K, S, D], cos and sin [1, S, D] in fp32."""
    q_type, k_type = q.dtype, k.dtype
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    q_embed = b.op("add", b.op("mul", q, cos), b.op("mul", rotate_half(b, q), sin))
    k_embed = b.op("add", b.op("mul", k, cos), b.op("mul", rotate_half(b, k), sin))
    return F.to(b, q_embed, q_type), F.to(b, k_embed, k_type)


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
    """Olmo2Attention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        d, bias, dtype = config.head_dim, config.attention_bias, settings.dtype
        q, kv = config.num_attention_heads, config.num_key_value_heads
        query_states = rms_norm(b, settings, F.linear(b, hidden_states, "q_proj", q * d, dtype, bias), "q_norm")
        key_states = rms_norm(b, settings, F.linear(b, hidden_states, "k_proj", kv * d, dtype, bias), "k_norm")
        value_states = F.linear(b, hidden_states, "v_proj", kv * d, dtype, bias)
        query_states = F.transpose(b, b.op("view", query_states, shape=(batch, sequence, q, d)), 1, 2)
        key_states = F.transpose(b, b.op("view", key_states, shape=(batch, sequence, kv, d)), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=(batch, sequence, kv, d)), 1, 2)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, bias)


@module_call
def decoder_layer(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Olmo2DecoderLayer.forward."""
    residual = hidden_states
    hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
    hidden_states = rms_norm(b, settings, hidden_states, "post_attention_layernorm")
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    residual = hidden_states
    hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = rms_norm(b, settings, hidden_states, "post_feedforward_layernorm")
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    return hidden_states


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows: list[Parameter] = []
    for name, out, inputs in (
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
    ):
        rows.append(Parameter(f"self_attn.{name}.weight", (out, inputs), dtype, module="linear"))
        if config.attention_bias:
            rows.append(Parameter(f"self_attn.{name}.bias", (out,), dtype, module="linear"))
    rows += [
        Parameter(f"self_attn.{name}.weight", (size,), dtype, module="norm")
        for name, size in (("q_norm", q), ("k_norm", kv))
    ]
    shapes = (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner)))
    rows += [Parameter(f"mlp.{name}.weight", shape, dtype, module="linear") for name, shape in shapes]
    rows += [
        Parameter(f"{name}.weight", (hidden,), dtype, module="norm")
        for name in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    return tuple(rows)


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = decoder_config(fields)
    check_supported(config, dropout=True)
    parts = Parts(lambda b, x, name: rms_norm(b, settings, x, name), rotary_in_fp32=not settings.stack.olmo2_as_llama)
    return assemble(config, settings, parts, decoder_layer, layer_parameters(config, settings.dtype))


release_in_slot_order(__name__)
