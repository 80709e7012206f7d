"""gpt-oss (transformers/models/gpt_oss/modeling_gpt_oss.py): attention with sinks, sliding and full layers in turn,
experts with biases and a clamped gate.
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
from memsim.models.common.attention import query_key_value, repeat_kv
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer, under_one_name
from memsim.models.common.dynamic_rope import rotary_dim
from memsim.models.common.moe import Layout, experts_of
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.typed import assemble_types, layer_types
from memsim.models.mixtral import check_experts
from memsim.models.olmo2 import rms_norm

DEFAULTS: dict[str, object] = {
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "head_dim": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "attention_bias": True,
}


def apply_rotary_emb(b: Builder, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """_apply_rotary_emb: x [B, H, S, D], cos and sin [1, 1, S, D/2]."""
    first_half, second_half = b.run("chunk", x, parts=2)
    first_ = b.op("sub", b.op("mul", first_half, cos), b.op("mul", second_half, sin))
    second_ = b.op("add", b.op("mul", second_half, cos), b.op("mul", first_half, sin))
    return b.op("cat", first_, second_)


def apply_rotary_pos_emb(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, H, S, D], k [B, K, S, D], cos and sin [1, S, D/2]."""
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    q_embed = apply_rotary_emb(b, q, cos, sin)
    k_embed = apply_rotary_emb(b, k, cos, sin)
    return q_embed, k_embed


def eager_attention(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    mask: Tensor,
    groups: int,
    p: float,
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward: the softmax runs over the keys and one logit more, a sink for each head, in the logits'
    dtype.
    """
    batch, heads, sequence, _ = query.shape
    key_states = repeat_kv(b, settings, key, groups)
    value_states = repeat_kv(b, settings, value, groups)
    attn_weights = b.op("mul_scalar", F.matmul(b, query, F.transpose(b, key_states, 2, 3)))
    attn_weights = b.op("add", attn_weights, mask)
    sinks = b.op("expand", b.op("view", sinks, shape=(1, heads, 1, 1)), shape=(batch, heads, sequence, 1))
    combined_logits = b.op("cat", attn_weights, sinks)
    combined_logits = b.op("sub", combined_logits, b.op("max", combined_logits))
    probs = b.op("softmax", combined_logits, dtype=combined_logits.dtype)
    scores = b.op("slice", probs, length=sequence)
    if p:
        scores = b.op("dropout", scores, p=p)
    attn_weights = F.to(b, scores, value_states.dtype)
    attn_output = F.matmul(b, attn_weights, value_states)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output, attn_weights


@module_call
def self_attention(
    b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """GptOssAttention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        count, dtype, bias = config.num_attention_heads, settings.dtype, config.attention_bias
        sinks = b.parameter("self_attn.sinks", (count,), dtype, True)

        query_states, key_states, value_states = query_key_value(b, config, hidden_states, dtype, bias)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        with b.core(query_states, key_states, value_states, mask):
            attn_output, attn_weights = eager_attention(
                b,
                settings,
                query_states,
                key_states,
                value_states,
                sinks,
                mask,
                config.groups,
                config.attention_dropout,
            )
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, count * config.head_dim))
        attn_output = F.linear(b, attn_output, "o_proj", config.hidden_size, dtype, bias)
        return attn_output, attn_weights


def apply_gate(b: Builder, gate_up: Tensor) -> Tensor:
    """GptOssExperts._apply_gate: gate and up are neighbours."""
    inner = gate_up.shape[-1] // 2
    gate, up = b.op("slice", gate_up, length=inner, step=2), b.op("slice", gate_up, length=inner, step=2)
    gate = b.op("clamp", gate, limits=1)
    up = b.op("clamp", up, limits=2)
    glu = b.op("mul", gate, b.op("sigmoid", b.op("mul_scalar", gate)))
    gated_output = b.op("mul", b.op("add_scalar", up), glu)
    return gated_output


LAYOUT = Layout(apply_gate, transposed=True, bias=True)


def router(b: Builder, hidden_states: Tensor, experts: int, top_k: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """GptOssTopKRouter: logits [T, E], scores and indices of the chosen experts [T, k]."""
    name = "mlp.router.weight"
    b.parameter(name, (experts, hidden_states.shape[-1]), dtype, True)
    bias = b.parameter("mlp.router.bias", (experts,), dtype, True)
    with b.module("router"), b.wrapped(name):
        return router_forward(b, hidden_states, b.read(name), bias, top_k)


@module_call
def router_forward(
    b: Builder, hidden_states: Tensor, weight: Tensor, bias: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """GptOssTopKRouter.forward."""
    router_logits = b.op("linear", hidden_states, weight, bias)
    router_top_value, router_indices = b.run("topk", router_logits, k=top_k)
    router_scores = b.op("softmax", router_top_value, dtype=router_top_value.dtype)
    return router_logits, router_scores, router_indices


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """GptOssMLP.forward."""
    with b.module("mlp"):
        experts, top_k = expert_numbers(config)
        batch, sequence, hidden_dim = hidden_states.shape
        hidden_states = F.reshape(b, hidden_states, batch * sequence, hidden_dim)
        _, router_scores, router_indices = router(b, hidden_states, experts, top_k, settings.dtype)
        hidden_states = experts_of(
            b, settings, hidden_states, router_indices, router_scores, experts, config.intermediate_size, LAYOUT
        )
        hidden_states = F.reshape(b, hidden_states, batch, sequence, hidden_dim)
        return hidden_states, router_scores


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
    """GptOssDecoderLayer.forward."""
    assert mask is not None
    residual = hidden_states
    hidden_states = rms_norm(b, settings, hidden_states, "input_layernorm")
    hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    residual = hidden_states
    hidden_states = rms_norm(b, settings, hidden_states, "post_attention_layernorm")
    hidden_states, _ = mlp(b, config, settings, hidden_states)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    return hidden_states


def expert_numbers(config: DecoderConfig) -> tuple[int, int]:
    """Number of experts, and how many a token takes. Raises InputError."""
    experts, top_k = integer(config.fields, "num_local_experts"), integer(config.fields, "num_experts_per_tok")
    if experts == 1:
        raise Unsupported("model.num_local_experts: 1 is not supported yet; two and more are")
    if top_k > experts:
        raise InputError(f"model.num_experts_per_tok: {top_k} is more than the {experts} experts there are")
    return experts, top_k


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d, bias = config.hidden_size, config.intermediate_size, config.head_dim, config.attention_bias
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    experts, _ = expert_numbers(config)
    rows = [Parameter("self_attn.sinks", (config.num_attention_heads,), dtype)]
    for name, out, inputs in (
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
    ):
        rows += linear_parameters(f"self_attn.{name}", out, inputs, dtype, bias)
    shapes = {
        "router.weight": (experts, hidden),
        "router.bias": (experts,),
        "experts.gate_up_proj": (experts, hidden, 2 * inner),
        "experts.gate_up_proj_bias": (experts, 2 * inner),
        "experts.down_proj": (experts, inner, hidden),
        "experts.down_proj_bias": (experts, hidden),
    }
    rows += [Parameter(f"mlp.{name}", shape, dtype, in_first=len(shape) == 3) for name, shape in shapes.items()]
    return tuple(
        rows
        + [
            Parameter(f"{name}.weight", (hidden,), dtype, module="norm")
            for name in ("input_layernorm", "post_attention_layernorm")
        ]
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError and Unsupported."""
    named = under_one_name(fields, "num_local_experts", "num_experts")
    config = decoder_config(named, **DEFAULTS)
    check_supported(config, dropout=True)
    check_experts(config)
    if rotary_dim(config, 1.0) != config.head_dim:
        raise InputError(
            "model.partial_rotary_factor: does not run with gpt_oss, whose heads turn as a whole; 1.0 does"
        )
    if settings.attention != "eager":
        raise InputError(
            f"attention: {settings.attention} does not run with gpt_oss, whose softmax has a sink for each head; "
            "eager does"
        )
    parts = Parts(lambda b, x, name: rms_norm(b, settings, x, name), told_positions=False, spread="once")
    types = layer_types(config, lambda layer: layer % 2 == 0)
    return assemble_types(
        config, settings, parts, types, [decoder_layer] * len(types), layer_parameters(config, settings.dtype)
    )


release_in_slot_order(__name__)
