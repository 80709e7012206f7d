"""Refusals of decoders with Llama's config fields."""

from __future__ import annotations

from collections.abc import Collection

from memsim.errors import InputError, Unsupported
from memsim.models.common.activations import ACTIVATIONS
from memsim.models.common.config import DecoderConfig
from memsim.models.common.dynamic_rope import rope_of, rope_type

PARTIAL = ("glm", "glm4", "glm4_moe", "gpt_neox", "phi", "phi3", "stablelm")  # a part of whose heads may turn


def check_supported(
    config: DecoderConfig, acts: Collection[str] | None = None, dropout: bool = False, ropes: Collection[str] = ()
) -> None:
    """Raises Unsupported for config fields that change what executes in ways that are not modelled, InputError for what
    does not run; `dropout` of
    attention may be, and these `ropes` beside those that never change.
    """
    acts = ACTIVATIONS if acts is None else acts
    if config.hidden_act not in acts:
        raise Unsupported(f"model.hidden_act: {config.hidden_act} is not supported yet; {', '.join(acts)} are")
    if config.attention_dropout and not dropout:
        raise Unsupported(f"model.attention_dropout: {config.fields['attention_dropout']} is not supported yet; 0.0 is")
    known = ("default", "linear", "llama3", "yarn", *ropes)
    if rope_type(config) not in known:
        raise Unsupported(
            f"model.rope_scaling: rope_type {rope_type(config)} is not supported yet with {config.model_type} and "
            f"this stack; {', '.join(known)} are"
        )
    share = rope_of(config).get("partial_rotary_factor", config.fields.get("partial_rotary_factor", 1.0))
    if rope_type(config) != "default" and share != 1 and config.model_type not in PARTIAL:
        raise InputError(
            f"model.partial_rotary_factor: {share!r} with rope_type {rope_type(config)} does not run with "
            f"{config.model_type}, whose heads turn whole; 1.0 does"
        )
