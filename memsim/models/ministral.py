"""Ministral (transformers/models/ministral/modeling_ministral.py): Mistral with layers of two types."""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import decoder_config
from memsim.models.common.norms import rms_norm
from memsim.models.common.refusals import check_supported
from memsim.models.common.typed import HOLD_POSITIONS_FIRST, assemble_types, layer_types
from memsim.models.llama import decoder_layer, layer_parameters


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError."""
    config = decoder_config(
        fields, num_key_value_heads=8, **({} if "sliding_window" in fields else {"sliding_window": 4096})
    )
    check_supported(config, dropout=True)
    if fields.get("head_dim") is None:
        raise InputError("model: the config of a ministral needs head_dim, which its attention scales by")
    types = layer_types(config, lambda layer: config.sliding_window is not None)
    if config.sliding_window is None:
        raise InputError(
            "model.sliding_window: null does not run with ministral, which makes a mask of it in any case; a number "
            "of tokens does"
        )
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype))
    return assemble_types(
        config,
        settings,
        parts,
        types,
        [decoder_layer] * len(types),
        layer_parameters(config, settings.dtype),
        HOLD_POSITIONS_FIRST,
    )
