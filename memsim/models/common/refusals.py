"""Refusals of decoders with Llama's config fields."""

from __future__ import annotations

from collections.abc import Collection

from memsim.errors import Unsupported
from memsim.models.common.activations import ACTIVATIONS
from memsim.models.common.config import DecoderConfig
from memsim.models.common.dynamic_rope import rope_type


def check_supported(
    config: DecoderConfig, acts: Collection[str] | None = None, dropout: bool = False, ropes: Collection[str] = ()
) -> None:
    """Raises Unsupported for config fields that change what executes in ways that are not modelled. `dropout` allows
    that of attention. `ropes` are allowed beside the kinds that never change.
    """
    acts = ACTIVATIONS if acts is None else acts
    if config.hidden_act not in acts:
        raise Unsupported(f"model.hidden_act: {config.hidden_act} is not supported yet; {', '.join(acts)} are")
    if config.attention_dropout and not dropout:
        raise Unsupported(f"model.attention_dropout: {config.fields['attention_dropout']} is not supported yet; 0.0 is")
    if rope_type(config) in ("dynamic", "longrope") and rope_type(config) not in ropes:
        known = ", ".join(("default", "linear", "llama3", "yarn", *ropes))
        raise Unsupported(
            f"model.rope_scaling: rope_type {rope_type(config)} is not supported yet with {config.model_type} and "
            f"this stack; {known} are"
        )
