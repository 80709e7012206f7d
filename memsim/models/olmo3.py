"""OLMo-3 (transformers/models/olmo3/modeling_olmo3.py): OLMo-2 with sliding and full layers, whose rotary tables are
their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import decoder_config
from memsim.models.common.refusals import check_supported
from memsim.models.common.typed import HOLD_POSITIONS_FIRST, assemble_types, layer_types
from memsim.models.olmo2 import decoder_layer, layer_parameters, rms_norm


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError."""
    config = decoder_config(fields, **({} if "sliding_window" in fields else {"sliding_window": 4096}))
    check_supported(config, dropout=True)
    if config.sliding_window is None:
        raise InputError(
            "model.sliding_window: null does not run with olmo3, which makes a mask of it in any case; a number of "
            "tokens does"
        )
    types = layer_types(config, lambda layer: (layer + 1) % 4 != 0)
    parts = Parts(
        lambda b, x, name: rms_norm(b, settings, x, name),
        rotary_in_fp32=True,
        rotary_by_type=tuple(dict.fromkeys(types)),
    )
    return assemble_types(
        config,
        settings,
        parts,
        types,
        [decoder_layer] * len(types),
        layer_parameters(config, settings.dtype),
        HOLD_POSITIONS_FIRST,
    )
