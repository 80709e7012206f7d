"""Granite (transformers/models/granite/modeling_granite.py): a Llama whose embeddings, residuals and logits are
multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, decoder_config
from memsim.models.common.norms import rms_norm
from memsim.models.common.refusals import check_supported
from memsim.models.llama import layer_parameters, mlp, self_attention


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
    """GraniteDecoderLayer.forward."""
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "input_layernorm", settings.dtype)
    hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
    hidden_states = b.op("add", residual, b.op("mul_scalar", hidden_states), label="residual")
    residual = hidden_states
    hidden_states = rms_norm(b, hidden_states, "post_attention_layernorm", settings.dtype)
    hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = b.op("add", residual, b.op("mul_scalar", hidden_states), label="residual")
    return hidden_states


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config = decoder_config(fields)
    check_supported(config, dropout=True)
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype), scaled=True)
    return assemble(
        config, settings, parts, decoder_layer, layer_parameters(config, settings.dtype), HOLD_POSITIONS_FIRST
    )


release_in_slot_order(__name__)
