"""SmolLM3 (transformers/models/smollm3/modeling_smollm3.py): a Llama of which some layers do not turn
queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.attention import attend, query_key_value
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config, integer
from memsim.models.common.layers import pre_norm
from memsim.models.common.mlp import activation, mlp_of
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import attention_parameters, mlp_parameters, norm_parameters
from memsim.models.common.refusals import check_supported
from memsim.models.common.typed import FULL, SLIDING, assemble_types, layer_types, typed_model
from memsim.models.llama import self_attention


@module_call
def unturned_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """SmolLM3Attention.forward without use_rope."""
    with b.module("self_attn"):
        query_states, key_states, value_states = query_key_value(
            b, config, hidden_states, settings.dtype, config.attention_bias
        )
        return attend(b, config, settings, query_states, key_states, value_states, mask, config.attention_bias)


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, x: Tensor) -> Tensor:
    """SmolLM3MLP.forward."""
    return mlp_of(b, x, "mlp", config.intermediate_size, settings.dtype, activation(config), config.mlp_bias)


TURNED, UNTURNED = pre_norm(self_attention, mlp), pre_norm(unturned_attention, mlp)


def turned(config: DecoderConfig) -> tuple[bool, ...]:
    """Of each layer, whether it turns queries and keys. Raises InputError."""
    layers = config.num_hidden_layers
    given = config.fields.get("no_rope_layers")
    if given is None:
        interval = integer(config.fields, "no_rope_layer_interval", 4)
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(given, (list, tuple)) or len(given) < layers or not all(flag in (0, 1) for flag in given):
        raise InputError(
            f"model.no_rope_layers: needs {layers} entries, each 1, where a layer turns queries and keys, or 0"
        )
    return tuple(bool(flag) for flag in given[:layers])


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError."""
    config = decoder_config(fields, num_key_value_heads=4, tie_word_embeddings=True)
    check_supported(config, dropout=True)
    slides = bool(config.fields.get("use_sliding_window")) and config.sliding_window is not None
    rope = turned(config)
    types = layer_types(config, lambda layer: slides and not rope[layer])
    if SLIDING in types and config.sliding_window is None:
        raise InputError(f"model.layer_types: {SLIDING} needs model.sliding_window, a number of tokens")
    parts = Parts(
        lambda b, x, name: rms_norm(b, x, name, settings.dtype),
        model=typed_model((FULL, SLIDING) if SLIDING in types else (FULL,)),
    )
    dtype = settings.dtype
    mlp_rows = mlp_parameters("mlp", config.hidden_size, config.intermediate_size, dtype, config.mlp_bias)
    parameters = (*attention_parameters(config, dtype), *mlp_rows, *norm_parameters(config, dtype))
    return assemble_types(config, settings, parts, types, [TURNED if turns else UNTURNED for turns in rope], parameters)


release_in_slot_order(__name__)
