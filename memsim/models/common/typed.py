"""Decoders whose layers are of two types, with sliding-window or with full attention, and a mask for each (layer_types
in transformers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import assemble_kinds
from memsim.models.common.causal_lm import Parts, embed_tokens
from memsim.models.common.config import DecoderConfig
from memsim.models.common.layers import Layer
from memsim.models.common.masks import causal_mask
from memsim.models.common.rotary_tables import rotary_embedding

SLIDING, FULL = "sliding_attention", "full_attention"
PREFIX = {SLIDING: "sliding_", FULL: ""}  # prefix of the names of a type's tables
MASKS = {SLIDING: "sliding_mask", FULL: "full_mask"}
# The arguments of a layer that a checkpoint holds, in the order in which it releases them: those by name in the order
# of the call, a tuple from its end.
HOLD = ("full_mask", "sliding_mask", "sin", "cos", "position_ids", "hidden_states")
HOLD_POSITIONS_FIRST = (
    "full_mask",
    "sliding_mask",
    "position_ids",
    "sin",
    "sliding_sin",
    "cos",
    "sliding_cos",
    "hidden_states",
)


def layer_types(config: DecoderConfig, is_sliding: Callable[[int], bool]) -> tuple[str, ...]:
    """Returns the type of each layer, as the config says. Where it does not say, its class decides.
    Raises InputError.
    """
    types = config.fields.get("layer_types")
    if types is None:
        return tuple(SLIDING if is_sliding(layer) else FULL for layer in range(config.num_hidden_layers))
    if (
        not isinstance(types, (list, tuple))
        or len(types) != config.num_hidden_layers
        or not set(types) <= {SLIDING, FULL}
    ):
        raise InputError(f"model.layer_types: needs {config.num_hidden_layers} entries, each {SLIDING} or {FULL}")
    return tuple(types)


def rotary_tables(
    b: Builder, config: DecoderConfig, settings: Settings, dtype: str, position_ids: Tensor, parts: Parts
) -> dict[str, Tensor]:
    """Returns cos and sin, by the names that layers have for them. Tables by type are made in the order of a Python
    set, which differs from process to process.
    """
    dtype, dim = "fp32" if parts.rotary_in_fp32 else dtype, parts.rotary_dim or config.head_dim
    kinds = [
        kind for kind in ((SLIDING, FULL) if settings.other_order else (FULL, SLIDING)) if kind in parts.rotary_by_type
    ]
    made: dict[str, Tensor] = {}
    for kind in kinds or [""]:
        buffer, prefix = (f"rotary_emb.{kind}_inv_freq", PREFIX[kind]) if kind else ("", "")
        cos, sin = rotary_embedding(b, settings, dtype, position_ids, dim, buffer, parts.spread)
        made |= {f"{prefix}cos": cos, f"{prefix}sin": sin}
        del cos
        del sin
    return made


def typed_model(
    masks: tuple[str, ...] = (FULL, SLIDING),
) -> Callable[[Builder, DecoderConfig, Settings, Tensor, Parts], Tensor]:
    """Returns the forward of a model that makes masks for these types, in this order."""

    @module_call
    def model(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, parts: Parts) -> Tensor:
        inputs_embeds = embed_tokens(b, config, settings, input_ids, parts)
        position_ids = F.positions(b, settings)
        causal_mask_mapping: dict[str, Tensor] = {}
        for kind in masks:
            told = position_ids if parts.told_positions else None
            mask = causal_mask(
                b, settings, inputs_embeds.dtype, told, config.sliding_window if kind == SLIDING else None
            )
            if mask is not None:
                causal_mask_mapping[MASKS[kind]] = mask
            del told
            del mask
        hidden_states = inputs_embeds
        position_embeddings = rotary_tables(b, config, settings, hidden_states.dtype, position_ids, parts)
        given = {**position_embeddings, "position_ids": position_ids, **causal_mask_mapping}
        hidden_states = b.op("layers", hidden_states, *given.values(), names=("hidden_states", *given), trains=True)
        del given
        hidden_states = parts.norm(b, hidden_states, "norm")
        if not parts.told_positions:
            del position_ids
        while causal_mask_mapping:  # it dies before mask_kwargs, which holds the other two in its own order
            causal_mask_mapping.pop(next(iter(causal_mask_mapping)))
        del inputs_embeds
        if parts.told_positions:
            del position_ids
        while position_embeddings:  # tuples, which go from their end
            cos, sin, *_ = position_embeddings
            position_embeddings.pop(sin)
            position_embeddings.pop(cos)
        return hidden_states

    return model


def reads_of(kind: str, parts: Parts) -> tuple[str, ...]:
    """Returns the names that a layer of this type reads, in the order of assemble.INPUTS."""
    prefix = PREFIX[kind] if parts.rotary_by_type else ""
    return ("hidden_states", f"{prefix}cos", f"{prefix}sin", "position_ids", MASKS[kind])


def assemble_types(
    config: DecoderConfig,
    settings: Settings,
    parts: Parts,
    types: Sequence[str],
    layers: Sequence[Layer],
    layer_parameters: tuple[Parameter, ...],
    hold: tuple[str, ...] = HOLD,
) -> Model:
    """Returns the Model of a decoder whose layers are of these types, with a function for each, and the same
    parameters.
    """
    rows = tuple(zip(types, layers, strict=True))
    kinds = tuple(dict.fromkeys(rows))
    parts = parts if parts.model else replace(parts, model=typed_model())
    made = tuple((layer, layer_parameters) for _, layer in kinds)
    model = assemble_kinds(
        config,
        settings,
        parts,
        made,
        tuple(map(kinds.index, rows)),
        hold,
        tuple(reads_of(kind, parts) for kind, _ in kinds),
    )
    alike = (
        len(
            {
                tuple((op.kind, tuple(spec.shape for spec in op.inputs)) for op in graph.operators)
                for graph in model.layer_graphs
            }
        )
        == 1
    )
    return replace(model, alike=alike)


release_in_slot_order(__name__)
