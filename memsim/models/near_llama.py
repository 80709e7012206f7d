"""Llamas that differ in a detail: ERNIE 4.5, Seed-OSS and EXAONE 4
(transformers/models/{ernie4_5,seed_oss,exaone4}/modeling_*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from memsim.errors import InputError, show
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer, probability
from memsim.models.common.layers import Layer, pre_norm
from memsim.models.common.mlp import activation, mlp_forward
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import linear_parameters, mlp_parameters, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb, rotate_neighbours
from memsim.models.common.typed import FULL, HOLD_POSITIONS_FIRST, SLIDING, assemble_types, layer_types, typed_model

Rotate = Callable[[Builder, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Detail:
    """How the layers differ from Llama's."""

    rotate: Rotate | None = apply_rotary_pos_emb  # queries and keys; None: they do not turn
    bias: bool = False  # of q, k and v
    bias_out: bool = False  # of o
    mlp_bias: bool = False
    normed: bool = False  # each query and key head
    dropout: float = 0.0  # after attention and after the MLP


def rotate_in_fp32(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """ERNIE's apply_rotary_pos_emb: neighbours turn together, in fp32. q [B, H, S, D], cos and sin [1, S, D]."""
    original_dtype = q.dtype
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    cos = F.repeat_interleave(b, b.op("slice", cos, length=cos.shape[-1] // 2), 2, -1)
    sin = F.repeat_interleave(b, b.op("slice", sin, length=sin.shape[-1] // 2), 2, -1)
    q_embed = b.op(
        "add", b.op("mul", F.to(b, q, "fp32"), cos), b.op("mul", F.to(b, rotate_neighbours(b, q), "fp32"), sin)
    )
    k_embed = b.op(
        "add", b.op("mul", F.to(b, k, "fp32"), cos), b.op("mul", F.to(b, rotate_neighbours(b, k), "fp32"), sin)
    )
    return F.to(b, q_embed, original_dtype), F.to(b, k_embed, original_dtype)


@module_call
def self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    detail: Detail,
) -> tuple[Tensor, Tensor | None]:
    """Ernie4_5Attention.forward, SeedOssAttention.forward, Exaone4Attention.forward."""
    with b.module("self_attn"):
        query_states, key_states, value_states = query_key_value(b, config, hidden_states, settings.dtype, detail.bias)
        if detail.normed:
            query_states = rms_norm(b, query_states, "q_norm", settings.dtype)
            key_states = rms_norm(b, key_states, "k_norm", settings.dtype)
        if detail.rotate is not None:
            query_states, key_states = detail.rotate(b, query_states, key_states, cos, sin)
        attn_output, attn_weights = attend(
            b, config, settings, query_states, key_states, value_states, mask, detail.bias_out
        )
        attn_output = dropout(b, attn_output, detail.dropout)
        return attn_output, attn_weights


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, x: Tensor, detail: Detail) -> Tensor:
    """Ernie4_5MLP.forward, SeedOssMLP.forward, Exaone4MLP.forward."""
    down_proj = mlp_forward(b, x, "mlp", config.intermediate_size, settings.dtype, activation(config), detail.mlp_bias)
    down_proj = dropout(b, down_proj, detail.dropout)
    return down_proj


def pre_norm_layer(detail: Detail) -> Layer:
    """Ernie4_5DecoderLayer.forward, SeedOssDecoderLayer.forward."""
    return pre_norm(partial(self_attention, detail=detail), partial(mlp, detail=detail))


def post_norm_layer(detail: Detail) -> Layer:
    """Exaone4DecoderLayer.forward."""

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
        residual = hidden_states
        hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask, detail)
        hidden_states = rms_norm(b, hidden_states, "post_attention_layernorm", settings.dtype)
        hidden_states = b.op("add", residual, hidden_states, label="residual")
        residual = hidden_states
        hidden_states = mlp(b, config, settings, hidden_states, detail)
        hidden_states = rms_norm(b, hidden_states, "post_feedforward_layernorm", settings.dtype)
        hidden_states = b.op("add", residual, hidden_states, label="residual")
        return hidden_states

    return layer


def projections(config: DecoderConfig, detail: Detail, dtype: str) -> list[Parameter]:
    """A layer's parameters but its norms, in module order."""
    hidden, d = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows = linear_parameters("self_attn.q_proj", q, hidden, dtype, detail.bias)
    rows += linear_parameters("self_attn.k_proj", kv, hidden, dtype, detail.bias)
    rows += linear_parameters("self_attn.v_proj", kv, hidden, dtype, detail.bias)
    rows += linear_parameters("self_attn.o_proj", hidden, q, dtype, detail.bias_out)
    if detail.normed:
        rows += [Parameter(f"self_attn.{name}.weight", (d,), dtype, module="norm") for name in ("q_norm", "k_norm")]
    return rows + mlp_parameters("mlp", hidden, config.intermediate_size, dtype, detail.mlp_bias)


def ernie(fields: Mapping[str, object], settings: Settings) -> Model:
    """ERNIE 4.5 of these Hugging Face config fields."""
    config = decoder_config({**fields, "attention_dropout": 0.0}, tie_word_embeddings=True, head_dim=128)
    check_supported(config)
    bias = bool(config.fields.get("use_bias"))
    detail = Detail(rotate_in_fp32, bias, bias, bias)
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype), rotary_in_fp32=True)
    parameters = (*projections(config, detail, settings.dtype), *norm_parameters(config, settings.dtype))
    return assemble(config, settings, parts, pre_norm_layer(detail), parameters)


def seed(fields: Mapping[str, object], settings: Settings) -> Model:
    """Seed-OSS of these Hugging Face config fields."""
    config = decoder_config(fields, num_key_value_heads=8, head_dim=128, attention_bias=True, attention_dropout=0.1)
    check_supported(config, dropout=True)
    out, p = bool(config.fields.get("attention_out_bias")), probability(config.fields, "residual_dropout", 0.1)
    detail = Detail(bias=config.attention_bias, bias_out=out, mlp_bias=config.mlp_bias, dropout=p)
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype))
    parameters = (*projections(config, detail, settings.dtype), *norm_parameters(config, settings.dtype))
    return assemble(config, settings, parts, pre_norm_layer(detail), parameters)


def exaone_period(config: DecoderConfig) -> int:
    """After how many layers the one with full attention comes, where no layer_types say it. Raises InputError."""
    pattern = config.fields.get("sliding_window_pattern", 4)
    if config.sliding_window is None:
        raise InputError(
            "model.sliding_window: null without model.layer_types does not run with exaone4, which divides by a period "
            f"of 0; layer_types: [{FULL}, …] beside it runs"
        )
    if isinstance(pattern, str):
        same = f"; {len(pattern)} is the same" if pattern and pattern == "L" * (len(pattern) - 1) + "G" else ""
        raise InputError(
            f"model.sliding_window_pattern: {show(pattern)} without model.layer_types does not run with exaone4, which "
            f"computes with a number{same}, and layer_types beside it decide"
        )
    return integer({"model_type": "exaone4", "sliding_window_pattern": pattern}, "sliding_window_pattern")


def exaone(fields: Mapping[str, object], settings: Settings) -> Model:
    """EXAONE 4 of these Hugging Face config fields. Raises InputError."""
    config, dtype = (
        decoder_config(fields, **({} if "sliding_window" in fields else {"sliding_window": 4096})),
        settings.dtype,
    )
    check_supported(config, dropout=True)
    period = 0 if config.fields.get("layer_types") is not None else exaone_period(config)
    types = layer_types(config, lambda layer: (layer + 1) % period != 0)
    if SLIDING in types and config.sliding_window is None:
        raise InputError(f"model.layer_types: {SLIDING} needs model.sliding_window, a number of tokens")
    turned = Detail(normed=True)
    layers = {
        SLIDING: post_norm_layer(turned),
        FULL: post_norm_layer(turned if config.sliding_window is None else replace(turned, rotate=None)),
    }
    norms = [
        Parameter(f"{name}.weight", (config.hidden_size,), dtype, module="norm")
        for name in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    parts = Parts(
        lambda b, x, name: rms_norm(b, x, name, dtype),
        model=typed_model((FULL, SLIDING) if SLIDING in types else (FULL,)),
    )
    parameters = (*projections(config, turned, dtype), *norms)
    return assemble_types(
        config, settings, parts, types, [layers[kind] for kind in types], parameters, HOLD_POSITIONS_FIRST
    )


release_in_slot_order(__name__)
