"""Gemma 2 before masking_utils (transformers 4.48): embeddings scaled in the model's forward, one mask, of numbers, in
which sliding layers hide more.

Every function has the locals of the function in transformers that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig
from memsim.models.common.dense_mask import plain_mask
from memsim.models.common.rotary_tables import rotary_embedding

Norm = Callable[[Builder, Tensor, str, str], Tensor]
NAMES = ("hidden_states", "cos", "sin", "position_ids", "attention_mask")


def before_layers(b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor) -> list[Tensor]:
    """Gemma2Model.forward up to its layers: inputs_embeds, position_ids, causal_mask, hidden_states, cos and sin."""
    weight = b.parameter("embed_tokens.weight", (config.vocab_size, config.hidden_size), settings.dtype, True)
    inputs_embeds = b.op("embedding", input_ids, weight, label="embed_tokens", input_embeddings=True)
    position_ids = b.op("view", F.create(b, "arange", (settings.sequence,), "int64"), shape=(1, settings.sequence))
    causal_mask = plain_mask(b, settings, inputs_embeds.dtype)
    cos, sin = rotary_embedding(b, settings, inputs_embeds.dtype, position_ids, config.head_dim)
    hidden_states = b.op("mul_scalar", inputs_embeds)
    return [inputs_embeds, position_ids, causal_mask, hidden_states, cos, sin]


@module_call
def last_hidden_state(
    b: Builder, config: DecoderConfig, settings: Settings, input_ids: Tensor, final_norm: Norm
) -> Tensor:
    """Gemma2Model.forward."""
    inputs_embeds, position_ids, causal_mask, hidden_states, cos, sin = before_layers(b, config, settings, input_ids)
    hidden_states = b.op("layers", hidden_states, cos, sin, position_ids, causal_mask, names=NAMES, trains=True)
    layer_outputs = hidden_states  # noqa: F841
    hidden_states = final_norm(b, hidden_states, "norm", settings.dtype)
    del inputs_embeds  # arguments of forward die before its other locals
    del position_ids
    del causal_mask
    del sin  # a tuple goes from its end
    del cos
    return hidden_states


def sliding_mask(b: Builder, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a sliding layer makes of the mask [B, 1, S, S]: torch.where(sliding_window_mask, min_dtype, attention_mask);
    and sliding_window_mask.
    """
    shape = attention_mask.shape
    with b.no_grad():
        sliding_window_mask = b.op("tril", F.create(b, "ones", shape, "bool"))
        minimum = F.create(b, "minimum", (), attention_mask.dtype)
        result = F.create(b, "where", shape, attention_mask.dtype)
        del minimum
    return result, sliding_window_mask


release_in_slot_order(__name__)
