"""Mixtral, Qwen2-MoE and Qwen3-MoE (transformers/models/{mixtral,qwen2_moe,qwen3_moe}/modeling_*.py): known decoders
with experts for an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memsim.errors import Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble, assemble_kinds
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer, under_one_name
from memsim.models.common.layers import Mlp, pre_norm
from memsim.models.common.mlp import activation, mlp_of
from memsim.models.common.moe import experts_call, router
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import attention_parameters, linear_parameters, mlp_parameters, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.typed import FULL
from memsim.models.llama import decoder_layer, layer_parameters, self_attention

DEFAULTS: dict[str, dict[str, object]] = {
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
}


def read_config(fields: Mapping[str, object]) -> DecoderConfig:
    """The fields with their family's defaults, and one name for the number of experts. Raises Unsupported."""
    names = ("num_local_experts", "num_experts")
    named = under_one_name(fields, *(names if fields["model_type"] == "mixtral" else names[::-1]))
    config = decoder_config(named, **DEFAULTS[str(fields["model_type"])])
    check_supported(config, dropout=True)
    check_experts(config)
    if config.model_type != "mixtral":
        if config.fields.get("use_sliding_window"):
            raise Unsupported("model.use_sliding_window: true is not supported yet; false is")
        types = config.fields.get("layer_types")
        if (
            config.model_type == "qwen2_moe"
            and types is not None
            and (not isinstance(types, (list, tuple)) or set(types) != {FULL})
        ):
            raise Unsupported(f"model.layer_types: other than {FULL} is not supported yet with qwen2_moe")
        config = replace(config, sliding_window=None)
    return config


def check_experts(config: DecoderConfig) -> None:
    """Raises Unsupported for fields that change what the experts execute."""
    if config.fields.get("output_router_logits"):
        raise Unsupported(
            "model.output_router_logits: true is not supported yet; false is (the auxiliary loss is not modelled)"
        )
    if config.fields.get("router_jitter_noise"):
        raise Unsupported(
            f"model.router_jitter_noise: {config.fields['router_jitter_noise']} is not supported yet; 0.0 is"
        )


def expert_sizes(config: DecoderConfig) -> tuple[int, int, int]:
    """Number of experts, how many a token takes, and the inner size of one."""
    mixtral = config.model_type == "mixtral"
    experts = integer(config.fields, "num_local_experts" if mixtral else "num_experts")
    top_k = integer(config.fields, "num_experts_per_tok")
    if experts == 1:
        raise Unsupported("model: one expert is not supported yet; two and more are")
    if top_k > experts:
        raise Unsupported(f"model.num_experts_per_tok: {top_k} is more than the {experts} experts there are")
    return experts, top_k, config.intermediate_size if mixtral else integer(config.fields, "moe_intermediate_size")


@module_call
def mixtral_block(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """MixtralSparseMoeBlock.forward."""
    with b.module("mlp"):
        experts, top_k, inner = expert_sizes(config)
        batch, sequence, hidden_dim = hidden_states.shape
        hidden_states = b.op("view", hidden_states, shape=(batch * sequence, hidden_dim))
        _, top_k_weights, top_k_index = router(
            b, settings, hidden_states, experts, top_k, normalized=True, lowered=False
        )
        hidden_states = experts_call(
            b, settings, hidden_states, top_k_index, top_k_weights, experts, inner, activation(config)
        )
        hidden_states = F.reshape(b, hidden_states, batch, sequence, hidden_dim)
        return hidden_states


@module_call
def qwen3_moe_block(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """Qwen3MoeSparseMoeBlock.forward."""
    with b.module("mlp"):
        experts, top_k, inner = expert_sizes(config)
        batch, sequence, hidden_dim = hidden_states.shape
        hidden_states_reshaped = b.op("view", hidden_states, shape=(batch * sequence, hidden_dim))
        normalized = bool(config.fields.get("norm_topk_prob", False))
        _, routing_weights, selected_experts = router(
            b, settings, hidden_states_reshaped, experts, top_k, normalized, lowered=True
        )
        act = activation(config)
        final_hidden_states = experts_call(
            b, settings, hidden_states_reshaped, selected_experts, routing_weights, experts, inner, act
        )
        return F.reshape(b, final_hidden_states, batch, sequence, hidden_dim)


@module_call
def qwen2_moe_block(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """Qwen2MoeSparseMoeBlock.forward: an MLP that every token takes, beside the experts."""
    with b.module("mlp"):
        experts, top_k, inner = expert_sizes(config)
        batch, sequence, hidden_dim = hidden_states.shape
        hidden_states_reshaped = b.op("view", hidden_states, shape=(batch * sequence, hidden_dim))
        shared_expert_output = mlp_of(
            b, hidden_states_reshaped, "shared_expert", shared_size(config), settings.dtype, activation(config)
        )
        normalized = bool(config.fields.get("norm_topk_prob", False))
        _, routing_weights, selected_experts = router(
            b, settings, hidden_states_reshaped, experts, top_k, normalized, lowered=True
        )
        expert_output = experts_call(
            b, settings, hidden_states_reshaped, selected_experts, routing_weights, experts, inner, activation(config)
        )
        with b.locals(shared_expert_output, _, routing_weights, selected_experts, expert_output):
            shared_expert_output = b.op(
                "mul",
                b.op("sigmoid", F.linear(b, hidden_states_reshaped, "shared_expert_gate", 1, settings.dtype)),
                shared_expert_output,
            )
        expert_output = b.op("add", expert_output, shared_expert_output)
        expert_output = F.reshape(b, expert_output, batch, sequence, hidden_dim)
        return expert_output


def shared_size(config: DecoderConfig) -> int:
    """Inner size of Qwen2-MoE's shared expert."""
    return integer(config.fields, "shared_expert_intermediate_size")


def experts_parameters(config: DecoderConfig, dtype: str) -> list[Parameter]:
    """Of a block's router and experts, in module order."""
    experts, _, inner = expert_sizes(config)
    gate = [Parameter("mlp.gate.weight", (experts, config.hidden_size), dtype)]
    stacked = [
        Parameter("mlp.experts.gate_up_proj", (experts, 2 * inner, config.hidden_size), dtype),
        Parameter("mlp.experts.down_proj", (experts, config.hidden_size, inner), dtype),
    ]
    if config.model_type == "qwen3_moe":
        return stacked + gate
    rows = gate + stacked
    if config.model_type == "qwen2_moe":
        rows += mlp_parameters("mlp.shared_expert", config.hidden_size, shared_size(config), dtype)
        rows += linear_parameters("mlp.shared_expert_gate", 1, config.hidden_size, dtype)
    return rows


def pattern_of(config: DecoderConfig) -> tuple[int, ...]:
    """Of each layer, whether it is sparse (0) or has an ordinary MLP (1)."""
    dense = config.fields.get("mlp_only_layers") or ()
    step = integer(config.fields, "decoder_sparse_step", 1)
    if not isinstance(dense, (list, tuple)):
        raise Unsupported(f"model.mlp_only_layers: {dense!r} is not a list of layers")
    if config.model_type == "mixtral":
        return (0,) * config.num_hidden_layers
    return tuple(int(layer in dense or (layer + 1) % step != 0) for layer in range(config.num_hidden_layers))


BLOCKS: dict[str, Mlp] = {"mixtral": mixtral_block, "qwen2_moe": qwen2_moe_block, "qwen3_moe": qwen3_moe_block}


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = read_config(fields)
    dtype = settings.dtype
    by_type = config.model_type == "qwen2_moe"  # masks in a dict by type of layer
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, dtype), mask_arguments=by_type, unused_window=by_type)
    block = BLOCKS[config.model_type]
    if 0 not in pattern_of(config):
        return assemble(config, settings, parts, decoder_layer, layer_parameters(config, dtype), HOLD_POSITIONS_FIRST)
    sparse = (*attention_parameters(config, dtype), *experts_parameters(config, dtype), *norm_parameters(config, dtype))
    kinds = ((pre_norm(self_attention, block), sparse), (decoder_layer, layer_parameters(config, dtype)))
    return assemble_kinds(config, settings, parts, kinds, pattern_of(config), HOLD_POSITIONS_FIRST)


release_in_slot_order(__name__)
