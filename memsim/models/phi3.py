"""Phi-3 and Phi-4 (transformers/models/phi3/modeling_phi3.py): fused projections, cut and chunked; rotary tables over a
part of each head.
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
from memsim.models.common import rotary
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config
from memsim.models.common.dynamic_rope import check_longrope, rope_type, rotary_dim
from memsim.models.common.layers import pre_norm
from memsim.models.common.mlp import activation
from memsim.models.common.norms import rms_norm
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import part, rotate_half
from memsim.stacks.known import GOLDEN


def apply_rotary_pos_emb(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, H, S, D], k [B, K, S, D], cos and sin [1, S, R] for the first R of D."""
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    rotary = cos.shape[-1]
    q_rot, q_pass = part(b, q, rotary), b.op("slice", q, length=q.shape[-1] - rotary)
    k_rot, k_pass = part(b, k, rotary), b.op("slice", k, length=k.shape[-1] - rotary)
    q_embed = b.op("cat", b.op("add", b.op("mul", q_rot, cos), b.op("mul", rotate_half(b, q_rot), sin)), q_pass)
    k_embed = b.op("cat", b.op("add", b.op("mul", k_rot, cos), b.op("mul", rotate_half(b, k_rot), sin)), k_pass)
    return q_embed, k_embed


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
    """Phi3Attention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        d, q, kv = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        qkv = F.linear(b, hidden_states, "qkv_proj", (q + 2 * kv) * d, settings.dtype)
        query_states = b.op("slice", qkv, length=q * d)
        key_states = b.op("slice", qkv, length=kv * d)
        value_states = b.op("slice", qkv, length=kv * d)
        query_states = F.transpose(b, b.op("view", query_states, shape=(batch, sequence, q, d)), 1, 2)
        key_states = F.transpose(b, b.op("view", key_states, shape=(batch, sequence, kv, d)), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=(batch, sequence, kv, d)), 1, 2)
        rotate = rotary.apply_rotary_pos_emb if settings.stack.phi3_rotates_whole_heads else apply_rotary_pos_emb
        query_states, key_states = rotate(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, False)


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """Phi3MLP.forward."""
    with b.module("mlp"):
        up_states = F.linear(b, hidden_states, "gate_up_proj", 2 * config.intermediate_size, settings.dtype)
        gate, up_states = b.run("chunk", up_states, parts=2)
        up_states = b.op("mul", up_states, b.op(activation(config), gate))
        return F.linear(b, up_states, "down_proj", config.hidden_size, settings.dtype)


decoder_layer = pre_norm(self_attention, mlp)


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    shapes = {
        "self_attn.o_proj": (hidden, q),
        "self_attn.qkv_proj": (q + 2 * kv, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    rows = [Parameter(f"{name}.weight", shape, dtype, module="linear") for name, shape in shapes.items()]
    return tuple(
        rows
        + [
            Parameter(f"{name}.weight", (hidden,), dtype, module="norm")
            for name in ("input_layernorm", "post_attention_layernorm")
        ]
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = decoder_config(fields)
    check_supported(config, dropout=True, ropes=("longrope",) if settings.stack is GOLDEN else ())
    for key, none in (("resid_pdrop", 0.0), ("embd_pdrop", 0.0)):
        if config.fields.get(key, none) != none:
            raise Unsupported(f"model.{key}: {config.fields[key]} is not supported yet; {none} is")
    if rope_type(config) not in ("default", "longrope"):
        raise InputError(
            f"model.rope_scaling: rope_type {rope_type(config)} does not run with phi3, which takes longrope alone"
        )
    turning = rotary_dim(config, 1.0)
    if rope_type(config) == "longrope":
        check_longrope(config, turning)
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype), rotary_dim=turning)
    return assemble(
        config, settings, parts, decoder_layer, layer_parameters(config, settings.dtype), HOLD_POSITIONS_FIRST
    )


release_in_slot_order(__name__)
