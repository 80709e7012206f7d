"""GLM-4.5 (transformers/models/glm4_moe/modeling_glm4_moe.py): heads of which a part turns, and
DeepSeek-V3's experts.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble, assemble_kinds
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, under_one_name
from memsim.models.common.dynamic_rope import rotary_dim
from memsim.models.common.layers import pre_norm
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import linear_parameters, mlp_parameters, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_partial_rotary_pos_emb
from memsim.models.deepseek import HOLD, dense_first, mlp, moe, moe_parameters, routing_of

DEFAULTS: dict[str, object] = {
    "num_key_value_heads": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}


def read_config(fields: Mapping[str, object]) -> DecoderConfig:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    named = under_one_name(fields, "n_routed_experts", "num_local_experts")
    config = decoder_config(named, **DEFAULTS)
    check_supported(config, dropout=True)
    if 0 in dense_first(config):
        routing_of(config)
    return config


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
    """Glm4MoeAttention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape

        def heads(name: str, count: int) -> Tensor:
            states = F.linear(b, hidden_states, name, count * config.head_dim, settings.dtype, config.attention_bias)
            return b.op("view", states, shape=(batch, sequence, count, config.head_dim))

        query_states = heads("q_proj", config.num_attention_heads)
        key_states = heads("k_proj", config.num_key_value_heads)
        value_states = heads("v_proj", config.num_key_value_heads)
        if config.fields.get("use_qk_norm"):
            query_states = rms_norm(b, query_states, "q_norm", settings.dtype)
            key_states = rms_norm(b, key_states, "k_norm", settings.dtype)
        query_states = F.transpose(b, query_states, 1, 2)
        key_states = F.transpose(b, key_states, 1, 2)
        value_states = F.transpose(b, value_states, 1, 2)
        query_states, key_states = apply_partial_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, False)


def attention_parameters(config: DecoderConfig, dtype: str) -> list[Parameter]:
    """Of Glm4MoeAttention, in module order."""
    hidden, d, bias = config.hidden_size, config.head_dim, config.attention_bias
    rows = linear_parameters("self_attn.q_proj", config.num_attention_heads * d, hidden, dtype, bias)
    for name in ("k_proj", "v_proj"):
        rows += linear_parameters(f"self_attn.{name}", config.num_key_value_heads * d, hidden, dtype, bias)
    rows += linear_parameters("self_attn.o_proj", hidden, config.num_attention_heads * d, dtype)
    norms = ("q_norm", "k_norm") if config.fields.get("use_qk_norm") else ()
    return rows + [Parameter(f"self_attn.{name}.weight", (d,), dtype, module="norm") for name in norms]


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = read_config(fields)
    dtype = settings.dtype
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, dtype), rotary_dim=rotary_dim(config, 0.5))
    attention, norms = attention_parameters(config, dtype), norm_parameters(config, dtype)
    dense_mlp = mlp_parameters("mlp", config.hidden_size, config.intermediate_size, dtype)
    dense = (pre_norm(self_attention, mlp), (*attention, *dense_mlp, *norms))
    if 0 not in dense_first(config):
        return assemble(config, settings, parts, *dense, HOLD)
    kinds = ((pre_norm(self_attention, moe), (*attention, *moe_parameters(config, settings), *norms)), dense)
    return assemble_kinds(config, settings, parts, kinds, dense_first(config), HOLD)


release_in_slot_order(__name__)
