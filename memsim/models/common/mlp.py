"""The gated feed-forward module of Llama and its kin."""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor
from memsim.models.common.activations import ACTIVATIONS
from memsim.models.common.config import DecoderConfig


@module_call
def mlp_of(b: Builder, x: Tensor, name: str, inner: int, dtype: str, act: str, bias: bool = False) -> Tensor:
    """Runs LlamaMLP.forward, of a module with this name and inner size."""
    return mlp_forward(b, x, name, inner, dtype, act, bias)


def mlp_forward(b: Builder, x: Tensor, name: str, inner: int, dtype: str, act: str, bias: bool) -> Tensor:
    """Runs the forward that Llama's gated feed-forward modules share."""
    with b.module(name):
        product = b.op(
            "mul",
            b.op(act, F.linear(b, x, "gate_proj", inner, dtype, bias)),
            F.linear(b, x, "up_proj", inner, dtype, bias),
        )
        with b.locals(product):
            return F.linear(b, product, "down_proj", x.shape[-1], dtype, bias)


def activation(config: DecoderConfig) -> str:
    """Returns the operator of hidden_act."""
    return ACTIVATIONS[config.hidden_act]


release_in_slot_order(__name__)
