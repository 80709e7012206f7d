"""StableLM (transformers/models/stablelm/modeling_stablelm.py): Llama's MLP, LayerNorm, partial rotary, in parallel or
one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError, Unsupported, show
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, probability
from memsim.models.common.dynamic_rope import rotary_dim
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.common.parameters import linear_parameters, mlp_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb, part
from memsim.models.llama import mlp


def has_bias(config: DecoderConfig) -> bool:
    """Whether q, k and v have one."""
    return bool(config.fields.get("use_qkv_bias"))


def is_parallel(config: DecoderConfig) -> bool:
    """Whether the MLP reads what attention does."""
    return bool(config.fields.get("use_parallel_residual"))


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
    """StableLmAttention.forward."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        rotary, d, dtype = cos.shape[-1], config.head_dim, settings.dtype
        q, kv, bias = config.num_attention_heads, config.num_key_value_heads, has_bias(config)
        query_states = F.linear(b, hidden_states, "q_proj", q * d, dtype, bias)
        key_states = F.linear(b, hidden_states, "k_proj", kv * d, dtype, bias)
        value_states = F.linear(b, hidden_states, "v_proj", kv * d, dtype, bias)
        query_states = F.transpose(b, b.op("view", query_states, shape=(batch, sequence, q, d)), 1, 2)
        key_states = F.transpose(b, b.op("view", key_states, shape=(batch, sequence, kv, d)), 1, 2)
        value_states = F.transpose(b, b.op("view", value_states, shape=(batch, sequence, kv, d)), 1, 2)
        query_rot, query_pass = part(b, query_states, rotary), b.op("slice", query_states, length=d - rotary)
        key_rot, key_pass = part(b, key_states, rotary), b.op("slice", key_states, length=d - rotary)
        query_rot, key_rot = apply_rotary_pos_emb(b, query_rot, key_rot, cos, sin)
        query_states = b.op("cat", query_rot, query_pass)
        key_states = b.op("cat", key_rot, key_pass)
        return attend(b, config, settings, query_states, key_states, value_states, mask, False)


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
    """StableLmDecoderLayer.forward."""
    p = probability(config.fields, "hidden_dropout", 0.0)
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "input_layernorm", settings.dtype)
    self_attn_output, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
    if is_parallel(config):
        mlp_output = mlp(b, config, settings, hidden_states)
        with b.locals(hidden_states, residual, self_attn_output, *([] if _ is None else [_]), mlp_output):
            mlp_output = dropout(b, mlp_output, p)
        hidden_states = b.op("add", b.op("add", residual, self_attn_output), mlp_output, label="residual")
    else:
        residual = b.op("add", residual, self_attn_output, label="residual")
        mlp_output = mlp(b, config, settings, layer_norm(b, residual, "post_attention_layernorm", settings.dtype))
        with b.locals(hidden_states, residual, self_attn_output, *([] if _ is None else [_]), mlp_output):
            mlp_output = dropout(b, mlp_output, p)
        hidden_states = b.op("add", residual, mlp_output, label="residual")
    return hidden_states


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, kv, bias = config.hidden_size, config.num_key_value_heads * config.head_dim, has_bias(config)
    rows: list[Parameter] = []
    for name, out, biased in (
        ("q_proj", hidden, bias),
        ("k_proj", kv, bias),
        ("v_proj", kv, bias),
        ("o_proj", hidden, False),
    ):
        rows += linear_parameters(f"self_attn.{name}", out, hidden, dtype, biased)
    rows += mlp_parameters("mlp", hidden, config.intermediate_size, dtype)
    rows += norm_parameters("input_layernorm", hidden, dtype)
    return tuple(rows) if is_parallel(config) else (*rows, *norm_parameters("post_attention_layernorm", hidden, dtype))


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises Unsupported."""
    config, dtype = decoder_config({key: value for key, value in fields.items() if key != "head_dim"}), settings.dtype
    check_supported(config, dropout=True)
    if fields.get("head_dim") not in (None, config.head_dim):
        raise InputError(
            f"model.head_dim: {show(fields['head_dim'])} does not run with stablelm, whose heads make up hidden_size; "
            f"{config.head_dim} does"
        )
    if config.fields.get("qk_layernorm"):
        raise Unsupported(
            "model.qk_layernorm: true is not supported yet for stablelm, which norms each head with a module of its "
            "own; false is"
        )
    parts = Parts(
        lambda b, x, name: layer_norm(b, x, name, dtype),
        final=norm_parameters("norm", config.hidden_size, dtype),
        rotary_dim=rotary_dim(config, 0.25),
    )
    return assemble(config, settings, parts, decoder_layer, layer_parameters(config, dtype), HOLD_POSITIONS_FIRST)


release_in_slot_order(__name__)
