"""Decoder layers that several families share."""

from __future__ import annotations

from collections.abc import Callable

from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig
from memsim.models.common.norms import rms_norm

Layer = Callable[[Builder, DecoderConfig, Settings, Tensor, Tensor, Tensor, Tensor | None], Tensor]
SelfAttention = Callable[
    [Builder, DecoderConfig, Settings, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]
]
Norm = Callable[[Builder, Tensor, str, str], Tensor]  # takes a tensor, the norm's name and the weights' dtype
Mlp = Callable[[Builder, DecoderConfig, Settings, Tensor], Tensor]


def pre_norm(self_attention: SelfAttention, mlp: Mlp, norm: Norm = rms_norm) -> Layer:
    """Returns a layer with a norm ahead of attention and ahead of the MLP, as LlamaDecoderLayer and Phi3DecoderLayer
    are.
    """

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
        hidden_states = norm(b, hidden_states, "input_layernorm", settings.dtype)
        hidden_states, _ = self_attention(b, config, settings, hidden_states, cos, sin, mask)
        hidden_states = b.op("add", residual, hidden_states, label="residual")
        residual = hidden_states
        hidden_states = norm(b, hidden_states, "post_attention_layernorm", settings.dtype)
        hidden_states = mlp(b, config, settings, hidden_states)
        hidden_states = b.op("add", residual, hidden_states, label="residual")
        return hidden_states

    return layer


release_in_slot_order(__name__)
