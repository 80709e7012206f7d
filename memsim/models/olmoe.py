"""OLMoE (transformers/models/olmoe/modeling_olmoe.py): a Llama with norms of whole queries and keys, and experts for
every MLP.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer
from memsim.models.common.layers import pre_norm
from memsim.models.common.mlp import activation
from memsim.models.common.moe import experts_call, router
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import attention_parameters, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb
from memsim.models.deepseek import HOLD
from memsim.models.mixtral import check_experts

DEFAULTS: dict[str, object] = {"num_experts": 64, "num_experts_per_tok": 8}


def read_config(fields: Mapping[str, object]) -> DecoderConfig:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    named = dict(fields)
    if "num_local_experts" in named:  # transformers takes either
        named.setdefault("num_experts", named.pop("num_local_experts"))
    config = decoder_config(named, **DEFAULTS)
    check_supported(config, dropout=True)
    check_experts(config)
    if config.fields.get("clip_qkv") is not None and config.attention_bias:
        raise Unsupported(
            f"model.clip_qkv: {config.fields['clip_qkv']} with model.attention_bias is not supported; null is, or "
            "attention_bias: false"
        )
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise InputError(
            f"model.head_dim: {config.num_attention_heads} heads of {config.head_dim} are not the "
            f"{config.hidden_size} that q_norm is for"
        )
    experts, top_k = expert_counts(config)
    if experts == 1:
        raise Unsupported("model: one expert is not supported yet; two and more are")
    if top_k > experts:
        raise InputError(f"model.num_experts_per_tok: {top_k} is more than the {experts} experts there are")
    return config


def expert_counts(config: DecoderConfig) -> tuple[int, int]:
    """Number of experts, and how many a token takes."""
    return integer(config.fields, "num_experts"), integer(config.fields, "num_experts_per_tok")


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
    """OlmoeAttention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        d, bias, dtype = config.head_dim, config.attention_bias, settings.dtype
        q, kv = config.num_attention_heads, config.num_key_value_heads
        query_states = rms_norm(b, F.linear(b, hidden_states, "q_proj", q * d, dtype, bias), "q_norm", dtype)
        key_states = rms_norm(b, F.linear(b, hidden_states, "k_proj", kv * d, dtype, bias), "k_norm", dtype)
        value_states = F.linear(b, hidden_states, "v_proj", kv * d, dtype, bias)
        if config.fields.get("clip_qkv") is not None:
            query_states = b.op("clamp_", query_states, limits=2)
            key_states = b.op("clamp_", key_states, limits=2)
            value_states = b.op("clamp_", value_states, limits=2)
        query_states = F.transpose(b, b.op("view", query_states, shape=(batch, sequence, q, d)), 1, 2)
        key_states = F.transpose(b, b.op("view", key_states, shape=(batch, sequence, kv, d)), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=(batch, sequence, kv, d)), 1, 2)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, bias)


@module_call
def moe(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """OlmoeSparseMoeBlock.forward."""
    with b.module("mlp"):
        experts, top_k = expert_counts(config)
        batch, sequence, hidden_dim = hidden_states.shape
        hidden_states = b.op("view", hidden_states, shape=(batch * sequence, hidden_dim))
        normalized = bool(config.fields.get("norm_topk_prob", False))
        _, top_k_weights, top_k_index = router(b, settings, hidden_states, experts, top_k, normalized, lowered=True)
        final_hidden_states = experts_call(
            b,
            settings,
            hidden_states,
            top_k_index,
            top_k_weights,
            experts,
            config.intermediate_size,
            activation(config),
        )
        final_hidden_states = F.reshape(b, final_hidden_states, batch, sequence, hidden_dim)
        return final_hidden_states


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, expert_counts(config)[0]
    return (
        *attention_parameters(config, dtype),
        Parameter("self_attn.q_norm.weight", (hidden,), dtype, module="norm"),
        Parameter("self_attn.k_norm.weight", (config.head_dim * config.num_key_value_heads,), dtype, module="norm"),
        Parameter("mlp.gate.weight", (experts, hidden), dtype),
        Parameter("mlp.experts.gate_up_proj", (experts, 2 * inner, hidden), dtype),
        Parameter("mlp.experts.down_proj", (experts, hidden, inner), dtype),
        *norm_parameters(config, dtype),
    )


decoder_layer = pre_norm(self_attention, moe)


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = read_config(fields)
    dtype = settings.dtype
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, dtype))
    return assemble(config, settings, parts, decoder_layer, layer_parameters(config, dtype), HOLD)


release_in_slot_order(__name__)
