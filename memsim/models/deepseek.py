"""DeepSeek-V2 and V3 (transformers/models/{deepseek_v2,deepseek_v3}/modeling_*.py): latent attention, and experts
beside one that every token takes.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError, Unsupported, show
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble, assemble_kinds
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer, under_one_name
from memsim.models.common.group_routing import Routing, gate
from memsim.models.common.latent_attention import (
    attention_parameters,
    complex_self_attention,
    latent_of,
    self_attention,
)
from memsim.models.common.layers import pre_norm
from memsim.models.common.mlp import activation, mlp_of
from memsim.models.common.moe import experts_call
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import mlp_parameters, norm_parameters
from memsim.models.common.refusals import check_supported

DEFAULTS: dict[str, dict[str, object]] = {
    "deepseek_v2": {
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "moe_intermediate_size": 1407,
        "topk_method": "greedy",
    },
    "deepseek_v3": {
        "num_key_value_heads": 128,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "rope_interleave": True,
    },
}
# arguments of a layer as a checkpoint lets go of them
HOLD = ("sin", "cos", "attention_mask", "position_ids", "hidden_states")
NULLABLE = ("q_lora_rank", "rope_interleave", "norm_topk_prob")  # fields for which null is a value
METHODS = ("greedy", "group_limited_greedy")


def read_config(fields: Mapping[str, object]) -> DecoderConfig:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    model_type = str(fields["model_type"])
    defaults = {key: value for key, value in DEFAULTS[model_type].items() if key not in NULLABLE or key not in fields}
    other = "num_experts" if model_type == "deepseek_v2" else "num_local_experts"
    named = under_one_name(fields, "n_routed_experts", other)
    rope = integer({**defaults, **named}, "qk_rope_head_dim")
    if model_type == "deepseek_v3" and fields.get("head_dim") not in (None, rope):
        raise InputError(
            f"model.head_dim: {show(fields['head_dim'])} does not run with deepseek_v3, of whose heads the "
            f"{rope} elements of qk_rope_head_dim turn; {rope} does"
        )
    config = decoder_config({**named, "head_dim": rope}, **defaults)
    check_supported(config, dropout=True)
    check_attention(config)
    if 0 in dense_first(config):
        routing_of(config)
    return config


def check_attention(config: DecoderConfig) -> None:
    """Raises Unsupported for sizes that do not run."""
    if config.groups != 1 or config.num_attention_heads != config.num_key_value_heads:
        raise Unsupported(
            f"model.num_key_value_heads: {config.num_key_value_heads} with {config.num_attention_heads} attention "
            "heads cannot run, as every head has "
            f"keys and values of its own; {config.num_attention_heads} can"
        )
    if config.model_type == "deepseek_v2" and config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"model.num_attention_heads: {config.num_attention_heads} does not divide the {config.hidden_size} of "
            "hidden_size"
        )
    sizes = latent_of(config)
    if sizes.rope % 2:
        raise Unsupported(f"model.qk_rope_head_dim: {sizes.rope} is odd; it turns in pairs")
    if sizes.qk % 2 and config.model_type == "deepseek_v2":
        raise Unsupported(
            f"model.qk_nope_head_dim: {sizes.nope} is odd, and its heads no pairs of elements; even sizes are supported"
        )


def routing_of(config: DecoderConfig) -> Routing:
    """How tokens choose experts. Raises InputError and Unsupported."""
    fields = config.fields
    experts, top_k = integer(fields, "n_routed_experts"), integer(fields, "num_experts_per_tok")
    if fields.get("output_router_logits"):
        raise Unsupported(
            "model.output_router_logits: true is not supported yet; false is (the auxiliary loss is not modelled)"
        )
    method = str(fields.get("topk_method"))
    if config.model_type == "deepseek_v2" and method not in METHODS:
        raise Unsupported(
            f"model.topk_method: {method} is not what transformers' deepseek_v2 knows; {' and '.join(METHODS)} are"
        )
    if experts == 1:
        raise Unsupported("model: one expert is not supported yet; two and more are")
    if top_k > experts:
        raise InputError(f"model.num_experts_per_tok: {top_k} is more than the {experts} experts there are")
    if config.model_type == "deepseek_v2" and method == "greedy":
        return Routing(experts, top_k, limited=False)
    groups, top_groups = integer(fields, "n_group"), integer(fields, "topk_group")
    least = 1 if config.model_type == "deepseek_v2" else 2  # of whose scores a group's is the sum
    if experts % groups or experts // groups < least:
        raise InputError(
            f"model.n_group: {groups} groups of {experts} experts do not come out even, at {least} experts or more "
            "a group"
        )
    if top_groups > groups:
        raise InputError(f"model.topk_group: {top_groups} is more than the {groups} groups there are")
    return Routing(
        experts,
        top_k,
        groups,
        top_groups,
        normalized=bool(fields.get("norm_topk_prob")) and config.model_type != "deepseek_v2",
    )


def correction_dtype(config: DecoderConfig, settings: Settings) -> str | None:
    """Of the buffer that corrects the choice of experts; None where there is none."""
    return {"deepseek_v2": None, "deepseek_v3": settings.created}.get(config.model_type, "fp32")


def dense_first(config: DecoderConfig) -> tuple[int, ...]:
    """Of each layer, whether it has experts (0) or an ordinary MLP (1), as the first ones do. Raises InputError."""
    first = config.fields.get("first_k_dense_replace")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise InputError(f"model.first_k_dense_replace: {first!r} is no number of layers")
    return tuple(int(layer < first) for layer in range(config.num_hidden_layers))


def has_bias(config: DecoderConfig) -> bool:
    """Whether the MLPs have biases."""
    return config.mlp_bias and config.model_type == "deepseek_v2"


def shared_size(config: DecoderConfig) -> int:
    """Inner size of the experts that every token takes, which are one MLP."""
    return integer(config.fields, "moe_intermediate_size") * integer(config.fields, "n_shared_experts")


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, x: Tensor) -> Tensor:
    """DeepseekV3MLP.forward, of a dense layer."""
    return mlp_of(b, x, "mlp", config.intermediate_size, settings.dtype, activation(config), has_bias(config))


@module_call
def moe(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """DeepseekV3MoE.forward, DeepseekV2Moe.forward."""
    with b.module("mlp"):
        routing, act = routing_of(config), activation(config)
        residuals = hidden_states
        batch, sequence, hidden_dim = hidden_states.shape
        _, topk_weights, topk_indices = gate(b, settings, hidden_states, routing, correction_dtype(config, settings))
        hidden_states = b.op("view", hidden_states, shape=(batch * sequence, hidden_dim))
        inner = integer(config.fields, "moe_intermediate_size")
        hidden_states = F.reshape(
            b,
            experts_call(b, settings, hidden_states, topk_indices, topk_weights, routing.experts, inner, act),
            batch,
            sequence,
            hidden_dim,
        )
        with b.locals(hidden_states, _, topk_weights, topk_indices):
            hidden_states = b.op(
                "add",
                hidden_states,
                mlp_of(b, residuals, "shared_experts", shared_size(config), settings.dtype, act, has_bias(config)),
            )
        return hidden_states


def moe_parameters(config: DecoderConfig, settings: Settings) -> list[Parameter]:
    """Of a block with experts, in module order."""
    dtype, hidden = settings.dtype, config.hidden_size
    experts, inner = routing_of(config).experts, integer(config.fields, "moe_intermediate_size")
    rows = [
        Parameter("mlp.experts.gate_up_proj", (experts, 2 * inner, hidden), dtype),
        Parameter("mlp.experts.down_proj", (experts, hidden, inner), dtype),
        Parameter("mlp.gate.weight", (experts, hidden), dtype),
    ]
    correction = correction_dtype(config, settings)
    if correction is not None:
        rows.append(Parameter("mlp.gate.e_score_correction_bias", (experts,), correction, trainable=False, buffer=True))
    return rows + mlp_parameters("mlp.shared_experts", hidden, shared_size(config), dtype, has_bias(config))


@module_call
def complex_rotary(b: Builder, settings: Settings, dtype: str, position_ids: Tensor, head_dim: int) -> tuple[Tensor]:
    """DeepseekV2RotaryEmbedding.forward: numbers on the unit circle, [1, S, R / 2]."""
    with b.module("rotary_emb"), b.no_grad():
        inv_freq = b.parameter("rotary_emb.inv_freq", (head_dim // 2,), "fp32", False)
        freqs = b.op(
            "mul", b.op("cast", b.op("view", position_ids, shape=(*position_ids.shape, 1)), dtype="fp32"), inv_freq
        )
        ones = F.create(b, "ones_like", freqs.shape, "fp32")
        freqs_cis = F.create(b, "polar", freqs.shape, "complex64")
        del ones
        freqs_cis = b.op("mul_scalar", freqs_cis)
        return (freqs_cis,)


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = read_config(fields)
    dtype = settings.dtype
    parts = Parts(
        lambda b, x, name: rms_norm(b, x, name, dtype),
        rotary=complex_rotary if config.model_type == "deepseek_v2" else None,
    )
    attention, norms = attention_parameters(config, dtype), norm_parameters(config, dtype)
    dense_mlp = mlp_parameters("mlp", config.hidden_size, config.intermediate_size, dtype, has_bias(config))
    attend = complex_self_attention if config.model_type == "deepseek_v2" else self_attention
    dense = (pre_norm(attend, mlp), (*attention, *dense_mlp, *norms))
    if 0 not in dense_first(config):
        return assemble(config, settings, parts, *dense, HOLD)
    kinds = ((pre_norm(attend, moe), (*attention, *moe_parameters(config, settings), *norms)), dense)
    return assemble_kinds(config, settings, parts, kinds, dense_first(config), HOLD)


release_in_slot_order(__name__)
