"""Activations: the operators that config fields name."""

from __future__ import annotations

from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor

# The config's name → operator, in gated MLPs, and in those without a gate.
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
UNGATED = {
    "gelu_new": "gelu_new",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "silu",
    "relu": "relu",
    "tanh": "tanh",
}


@module_call
def new_gelu(b: Builder, x: Tensor) -> Tensor:
    """Runs NewGELUActivation.forward: 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return b.op(
        "mul",
        b.op("mul_scalar", x),
        b.op("add_scalar", b.op("tanh", b.op("mul_scalar", b.op("add", x, b.op("mul_scalar", b.op("pow", x)))))),
    )


release_in_slot_order(__name__)
