"""RMSNorm and LayerNorm, and the parameters of the latter."""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Parameter
from memsim.framework.tensor import Tensor


@module_call
def rms_norm(b: Builder, hidden_states: Tensor, name: str, dtype: str) -> Tensor:
    """LlamaRMSNorm.forward."""
    with b.module(name):
        weight = b.parameter(".".join([*b.path, "weight"]), (hidden_states.shape[-1],), dtype, True)
        input_dtype = hidden_states.dtype
        hidden_states = F.to(b, hidden_states, "fp32")
        variance = b.op("mean", b.op("square", hidden_states))
        hidden_states = b.op("mul", hidden_states, b.op("rsqrt", b.op("add_scalar", variance)))
        return b.op("mul", weight, F.to(b, hidden_states, input_dtype))


@module_call
def layer_norm(b: Builder, x: Tensor, name: str, dtype: str) -> Tensor:
    """Runs nn.LayerNorm(x)."""
    with b.module(name):
        path = ".".join(b.path)
        weight, bias = (b.parameter(f"{path}.{kind}", (x.shape[-1],), dtype, True) for kind in ("weight", "bias"))
        return b.op("layer_norm", x, weight, bias)


def norm_parameters(name: str, size: int, dtype: str) -> tuple[Parameter, Parameter]:
    """Returns the parameters of an nn.LayerNorm."""
    return Parameter(f"{name}.weight", (size,), dtype, module="norm"), Parameter(
        f"{name}.bias", (size,), dtype, module="norm"
    )


@module_call
def dropout_add(b: Builder, x: Tensor, residual: Tensor, p: float) -> Tensor:
    """Runs dropout_add of Falcon and Bloom: the residual plus x after dropout."""
    out = dropout(b, x, p)
    out = b.op("add", residual, out, label="residual")
    return out


release_in_slot_order(__name__)
