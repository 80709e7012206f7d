"""Gemma 2 and Gemma 3 text decoders (transformers/models/{gemma2,gemma3}/modeling_*.py): sliding and full layers in
turn, soft caps, norms of 1 + weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.graph.layer_graph import LayerGraph
from memsim.models import gemma_dense
from memsim.models.common.assemble import HOLD_POSITIONAL, layer_inputs
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.config import DecoderConfig, check_heads_divide, decoder_config, integer
from memsim.models.common.losses import causal_lm_loss
from memsim.models.common.masks import causal_mask
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb
from memsim.models.common.rotary_tables import rotary_embedding
from memsim.models.common.tied_head import head_parameters
from memsim.models.llama import mlp

SLIDING, FULL = "sliding_attention", "full_attention"
DEFAULTS: dict[str, dict[str, object]] = {
    "gemma2": {
        "head_dim": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {"head_dim": 256, "sliding_window": 4096},
}
PERIOD = {"gemma2": 2, "gemma3_text": 6}  # every so many layers one has full attention
# What a checkpoint holds of a layer's arguments, in the order in which it lets go of them.
HOLD = ("full_mask", "sliding_mask", "sin", "sliding_sin", "cos", "sliding_cos", "position_ids", "hidden_states")


@dataclass(frozen=True)
class Gemma:
    """A configuration, and what of it is Gemma's own."""

    decoder: DecoderConfig
    layer_types: tuple[str, ...]
    rotary_by_type: bool  # a table of frequencies for each type of layer
    softcap: bool  # of attention's logits
    final_softcap: bool


@module_call
def rms_norm(b: Builder, x: Tensor, name: str, dtype: str) -> Tensor:
    """Gemma2RMSNorm.forward."""
    with b.module(name):
        weight = b.parameter(".".join([*b.path, "weight"]), (x.shape[-1],), dtype, True)
        output = _norm(b, F.to(b, x, "fp32"))
        output = b.op("mul", output, b.op("add_scalar", F.to(b, weight, "fp32")))
        return F.to(b, output, x.dtype)


def _norm(b: Builder, x: Tensor) -> Tensor:
    return b.op("mul", x, b.op("rsqrt", b.op("add_scalar", b.op("mean", b.op("square", x)))))


@module_call
def self_attention(
    b: Builder, gemma: Gemma, settings: Settings, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gemma2Attention.forward, Gemma3Attention.forward."""
    config = gemma.decoder
    with b.module("self_attn"):
        query_states, key_states, value_states = query_key_value(
            b, config, hidden_states, settings.dtype, config.attention_bias
        )
        if gemma.rotary_by_type:
            query_states = rms_norm(b, query_states, "q_norm", settings.dtype)
            key_states = rms_norm(b, key_states, "k_norm", settings.dtype)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(
            b,
            config,
            settings,
            query_states,
            key_states,
            value_states,
            mask,
            config.attention_bias,
            softcap=gemma.softcap,
        )


@module_call
def decoder_layer(
    b: Builder,
    gemma: Gemma,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    hides: bool = False,
) -> Tensor:
    """Gemma2DecoderLayer.forward. `hides`: the layer makes a mask of its own, that hides what is outside the window."""
    dtype = settings.dtype
    if hides and mask is not None:
        mask, sliding_window_mask = gemma_dense.sliding_mask(b, mask)  # noqa: RUF059
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "input_layernorm", dtype)
    hidden_states, _ = self_attention(b, gemma, settings, hidden_states, cos, sin, mask)
    hidden_states = rms_norm(b, hidden_states, "post_attention_layernorm", dtype)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "pre_feedforward_layernorm", dtype)
    hidden_states = mlp(b, gemma.decoder, settings, hidden_states)
    hidden_states = rms_norm(b, hidden_states, "post_feedforward_layernorm", dtype)
    hidden_states = b.op("add", residual, hidden_states, label="residual")
    return hidden_states


@module_call
def embed(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor) -> Tensor:
    """Gemma2TextScaledWordEmbedding.forward."""
    weight = b.parameter("embed_tokens.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    scale = b.parameter("embed_tokens.embed_scale", (), settings.created, False)
    return b.op("scaled_embedding", input_ids, weight, scale, label="embed_tokens", input_embeddings=True)


@module_call
def model(b: Builder, gemma: Gemma, settings: Settings, input_ids: Tensor) -> Tensor:
    """Gemma2Model.forward, Gemma3TextModel.forward; returns last_hidden_state [B, S, H]."""
    config = gemma.decoder
    inputs_embeds = embed(b, config, settings, input_ids)
    position_ids = F.positions(b, settings)
    masks = {
        "full_mask": causal_mask(b, settings, inputs_embeds.dtype, position_ids),
        "sliding_mask": causal_mask(b, settings, inputs_embeds.dtype, position_ids, config.sliding_window),
    }
    hidden_states = inputs_embeds
    tables = {"cos": "rotary_emb"}
    if gemma.rotary_by_type:
        # A Python set's order, which differs from process to process; the tables are alike.
        order = (("cos", FULL), ("sliding_cos", SLIDING))
        tables = {
            name: f"rotary_emb.{kind}"
            for name, kind in (order[::-1] if settings.other_order else order)
            if kind in gemma.layer_types
        }
    position_embeddings: dict[str, Tensor] = {}
    for name, module in tables.items():
        cos, sin = rotary_embedding(
            b,
            settings,
            hidden_states.dtype,
            position_ids,
            config.head_dim,
            f"{module}_inv_freq" if "." in module else "",
        )
        position_embeddings |= {name: cos, name.replace("cos", "sin"): sin}
        del cos
        del sin
    given = {
        **position_embeddings,
        "position_ids": position_ids,
        **{name: mask for name, mask in masks.items() if mask is not None},
    }
    hidden_states = b.op("layers", hidden_states, *given.values(), names=("hidden_states", *given), trains=True)
    del given
    hidden_states = rms_norm(b, hidden_states, "norm", settings.dtype)
    masks.clear()  # causal_mask_mapping dies before mask_kwargs, which holds the other two in its own order
    del inputs_embeds
    del position_ids
    for name in tables:  # a tuple for each type of layer, which goes from its end
        del position_embeddings[name.replace("cos", "sin")]
        del position_embeddings[name]
    return hidden_states


@module_call
def causal_lm(b: Builder, gemma: Gemma, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Gemma2ForCausalLM.forward with labels; returns the loss."""
    config = gemma.decoder
    if settings.stack.dense_causal_mask:
        hidden_states = gemma_dense.last_hidden_state(b, config, settings, input_ids, rms_norm)
        hidden_states = F.index(b, settings, hidden_states, 0, 1, 2)  # [:, -0:, :]
    else:
        hidden_states = model(b, gemma, settings, input_ids)
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    weight = b.parameter(head, (config.vocab_size, config.hidden_size), settings.dtype, True)
    logits = b.op("linear", hidden_states, weight, label="lm_head", module="lm_head")
    if gemma.final_softcap:
        logits = b.op("mul_scalar", logits)
        logits = b.op("tanh", logits)
        logits = b.op("mul_scalar", logits)
    loss = causal_lm_loss(b, settings, logits, labels)
    return loss


def layer_parameters(gemma: Gemma, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    config = gemma.decoder
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
    if gemma.rotary_by_type:
        rows += [Parameter(f"self_attn.{name}.weight", (d,), dtype, module="norm") for name in ("q_norm", "k_norm")]
    shapes = (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner)))
    rows += [Parameter(f"mlp.{name}.weight", shape, dtype, module="linear") for name, shape in shapes]
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return tuple(rows + [Parameter(f"{name}.weight", (hidden,), dtype, module="norm") for name in norms])


def read_config(fields: Mapping[str, object]) -> Gemma:
    """The fields with their family's defaults. Raises InputError and Unsupported."""
    kind = str(fields["model_type"])
    defaults = {
        "tie_word_embeddings": True,
        "hidden_act": fields.get("hidden_activation") or "gelu_pytorch_tanh",
        **DEFAULTS[kind],
    }
    # hidden_act is nothing to these; hidden_activation is
    config = decoder_config({key: value for key, value in fields.items() if key != "hidden_act"}, **defaults)
    check_supported(config, dropout=True)
    if config.fields.get("use_bidirectional_attention"):
        raise Unsupported("model.use_bidirectional_attention: true is not supported yet; false is")
    types = config.fields.get("layer_types")
    if types is None:
        period = PERIOD[kind] if kind == "gemma2" else integer(config.fields, "sliding_window_pattern", PERIOD[kind])
        types = [SLIDING if (layer + 1) % period else FULL for layer in range(config.num_hidden_layers)]
    if (
        not isinstance(types, (list, tuple))
        or len(types) != config.num_hidden_layers
        or not set(types) <= {SLIDING, FULL}
    ):
        raise InputError(f"model.layer_types: needs {config.num_hidden_layers} entries, each {SLIDING} or {FULL}")

    def capped(key: str) -> bool:
        return fields.get(key, DEFAULTS[kind].get(key)) is not None  # a cap of 0.0 is one

    return Gemma(
        config,
        tuple(types),
        kind != "gemma2",
        kind == "gemma2" and capped("attn_logit_softcapping"),
        capped("final_logit_softcapping"),
    )


def layer_graphs(gemma: Gemma, settings: Settings, outer: LayerGraph) -> tuple[list[LayerGraph], dict[str, int]]:
    """A graph for each type of layer, and the number of each type's."""
    old = settings.stack.dense_causal_mask
    call = next(op for op in outer.operators if op.kind == "layers")
    given: tuple[str, ...] = call.attrs["names"]  # type: ignore[assignment]
    graphs: list[LayerGraph] = []
    pattern: dict[str, int] = {}
    for kind in dict.fromkeys(gemma.layer_types):
        prefix = "sliding_" if kind == SLIDING and gemma.rotary_by_type else ""
        mask = "attention_mask" if old else "sliding_mask" if kind == SLIDING else "full_mask"
        inner = Builder("decoder layer", settings.technique)
        wanted = ("hidden_states", f"{prefix}cos", f"{prefix}sin", "position_ids", mask)
        arguments = layer_inputs(inner, call, given, wanted)
        of_layer = (
            arguments["hidden_states"],
            arguments[f"{prefix}cos"],
            arguments[f"{prefix}sin"],
            arguments.get(mask),
        )
        hidden = decoder_layer(inner, gemma, settings, *of_layer, hides=old and kind == SLIDING)
        del of_layer
        pattern[kind] = len(graphs)
        graphs.append(inner.finish(hidden))
        del arguments
        del hidden
    return graphs, pattern


def rotary_buffers(gemma: Gemma, settings: Settings) -> list[str]:
    """Names of the frequencies' buffers."""
    rows = [
        f"rotary_emb.{name}"
        for name in (("inv_freq",) if settings.stack.inv_freq_once else ("inv_freq", "original_inv_freq"))
    ]
    if gemma.rotary_by_type:
        rows = [
            f"rotary_emb.{kind}_{name}"
            for kind in sorted(set(gemma.layer_types))
            for name in ("inv_freq", "original_inv_freq")
        ]
    return rows


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    gemma = read_config(fields)
    config, dtype = gemma.decoder, settings.dtype
    old = settings.stack.dense_causal_mask
    if not old:
        check_heads_divide(config, "Gemma2Config" if config.model_type == "gemma2" else "Gemma3TextConfig")
    if config.model_type == "gemma2" and settings.attention == "sdpa" and not old:
        raise InputError(
            "attention: sdpa does not run with gemma2, whose logits are soft-capped; eager and flash_attention_2 do"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, gemma, settings, ids, ids))
    graphs, pattern = layer_graphs(gemma, settings, outer)
    alike = (
        len({tuple((op.kind, tuple(spec.shape for spec in op.inputs)) for op in graph.operators) for graph in graphs})
        == 1
    )
    rows = rotary_buffers(gemma, settings)
    tail = [Parameter("norm.weight", (config.hidden_size,), dtype, module="norm")]
    tail += [Parameter(name, (config.head_dim // 2,), "fp32", trainable=False, buffer=True) for name in rows]
    table = (config.vocab_size, config.hidden_size)
    tail += head_parameters(table, dtype, config.tie_word_embeddings)
    parameters = layer_parameters(gemma, dtype)
    return Model(
        before=(
            Parameter("embed_tokens.weight", table, dtype, module="embedding"),
            *(
                ()
                if old
                else (Parameter("embed_tokens.embed_scale", (), settings.created, trainable=False, buffer=True),)
            ),
        ),
        layers=(parameters,) * len(graphs),
        after=tuple(tail),
        pattern=tuple(pattern[kind] for kind in gemma.layer_types),
        outer=outer,
        layer_graphs=tuple(graphs),
        alike=alike,
        settings=settings,
        hold_inputs=HOLD_POSITIONAL if settings.stack.checkpoints_positional_arguments else HOLD,
    )


release_in_slot_order(__name__)
