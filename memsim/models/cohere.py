"""Cohere's Command R and R7B (transformers/models/{cohere,cohere2}/modeling_*.py): attention and MLP side by side,
norms and rotation in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from memsim.models.common.layers import Layer
from memsim.models.common.parameters import linear_parameters, mlp_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import rotate_neighbours
from memsim.models.common.typed import SLIDING, assemble_types, layer_types
from memsim.models.llama import mlp


@module_call
def layer_norm(b: Builder, hidden_states: Tensor, name: str, dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
    """CohereLayerNorm.forward: composed of operators; shape: of the weight, where it is not the last dimension's."""
    with b.module(name):
        weight = b.parameter(".".join([*b.path, "weight"]), shape or hidden_states.shape[-1:], dtype, True)
        input_dtype = hidden_states.dtype
        hidden_states = F.to(b, hidden_states, "fp32")
        mean = b.op("mean", hidden_states)
        variance = b.op("mean", b.op("square", b.op("sub", hidden_states, mean)))
        hidden_states = b.op("mul", b.op("sub", hidden_states, mean), b.op("rsqrt", b.op("add_scalar", variance)))
        hidden_states = b.op("mul", F.to(b, weight, "fp32"), hidden_states)
        return F.to(b, hidden_states, input_dtype)


def apply_rotary_pos_emb(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, H, S, D], k [B, K, S, D], cos and sin [1, S, D]: in fp32, and back."""
    dtype = q.dtype
    q = F.to(b, q, "fp32")
    k = F.to(b, k, "fp32")
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    q_embed = b.op("add", b.op("mul", q, cos), b.op("mul", rotate_neighbours(b, q), sin))
    k_embed = b.op("add", b.op("mul", k, cos), b.op("mul", rotate_neighbours(b, k), sin))
    return F.to(b, q_embed, dtype), F.to(b, k_embed, dtype)


def norms_heads(config: DecoderConfig) -> bool:
    """Whether queries and keys are normed, as Command R may have it; Command R7B knows no such field."""
    return config.model_type == "cohere" and bool(config.fields.get("use_qk_norm"))


@module_call
def self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    turns: bool,
) -> tuple[Tensor, Tensor | None]:
    """CohereAttention.forward, Cohere2Attention.forward; turns: whether queries and keys do."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        d, q, kv, dtype = config.head_dim, config.num_attention_heads, config.num_key_value_heads, settings.dtype

        def heads(name: str, count: int) -> Tensor:
            states = F.linear(b, hidden_states, name, count * d, dtype, config.attention_bias)
            return b.op("view", states, shape=(batch, sequence, count, d))

        query_states = heads("q_proj", q)
        key_states = heads("k_proj", kv)
        value_states = heads("v_proj", kv)
        if norms_heads(config):
            query_states = layer_norm(b, query_states, "q_norm", dtype, (q, d))
            key_states = layer_norm(b, key_states, "k_norm", dtype, (kv, d))
        query_states = F.transpose(b, query_states, 1, 2)
        key_states = F.transpose(b, key_states, 1, 2)
        value_states = F.transpose(b, value_states, 1, 2)
        if turns:
            query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, config.attention_bias)


def layer_that(turns: bool) -> Layer:
    """A decoder layer whose queries and keys turn, or do not."""

    @module_call
    def layer(
        b: Builder,
        config: DecoderConfig,
        settings: Settings,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """CohereDecoderLayer.forward."""
        residual = hidden_states
        hidden_states = layer_norm(b, hidden_states, "input_layernorm", settings.dtype)
        hidden_states_attention, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask, turns)
        hidden_states_mlp = mlp(b, config, settings, hidden_states)
        hidden_states = b.op("add", b.op("add", residual, hidden_states_attention), hidden_states_mlp, label="residual")
        return hidden_states

    return layer


TURNED, UNTURNED = layer_that(turns=True), layer_that(turns=False)


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    hidden, d = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads, config.num_key_value_heads
    rows: list[Parameter] = []
    for name, out, inputs in (
        ("q_proj", q * d, hidden),
        ("k_proj", kv * d, hidden),
        ("v_proj", kv * d, hidden),
        ("o_proj", hidden, q * d),
    ):
        rows += linear_parameters(f"self_attn.{name}", out, inputs, dtype, config.attention_bias)
    if norms_heads(config):
        rows += [
            Parameter(f"self_attn.{name}.weight", (count, d), dtype, module="norm")
            for name, count in (("q_norm", q), ("k_norm", kv))
        ]
    rows += mlp_parameters("mlp", hidden, config.intermediate_size, dtype)
    return (*rows, Parameter("input_layernorm.weight", (hidden,), dtype, module="norm"))


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = decoder_config(
        fields, tie_word_embeddings=True, **({"sliding_window": 4096} if fields["model_type"] == "cohere2" else {})
    )
    check_supported(config, dropout=True)
    parts = Parts(lambda b, x, name: layer_norm(b, x, name, settings.dtype), logits_scaled=True, spread="interleaved")
    parameters = layer_parameters(config, settings.dtype)
    if config.model_type == "cohere":
        return assemble(config, settings, parts, TURNED, parameters)
    period = integer(config.fields, "sliding_window_pattern", 4)
    types = layer_types(config, lambda layer: (layer + 1) % period != 0)
    return assemble_types(
        config, settings, parts, types, [TURNED if kind == SLIDING else UNTURNED for kind in types], parameters
    )


release_in_slot_order(__name__)
