"""DoRA as PEFT executes it (peft/tuners/lora/dora.py, variants.py). It is LoRA whose sum with the base is scaled by
trained magnitudes over the norms of rows.

The norms are of base + adapters as one matrix, which a forward pass computes from the product of the adapters with a
unit matrix. Nothing is differentiated through them, but the graph of that product lives as long as the product has a
name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.roles import MAGNITUDE, MAGNITUDE_NAME
from memsim.framework.tensor import Tensor

if TYPE_CHECKING:
    from memsim.passes.lora_settings import Lora


@dataclass(frozen=True)
class Base:
    """The frozen module: its operator, weight and bias, and the way in which 4-bit weights are dequantized."""

    kind: str
    weights: tuple[Tensor, ...]
    double: bool = True
    dtype: str = ""

    @property
    def out(self) -> int:
        """Number of features of its result."""
        return self.weights[0].shape[1 if self.kind == "conv1d" else 0]


def magnitude(module: str, p: Parameter, lora: Lora) -> Parameter:
    """Returns the magnitudes of the rows of the module with weight p: a number for each of its output features."""
    out = p.shape[1] if p.module in ("conv1d", "embedding") else p.shape[0]
    return Parameter(
        f"{module}.{MAGNITUDE_NAME}", (out,), lora.dtype, adapter=True, module=MAGNITUDE, created_dtype=p.dtype
    )


def dora_branch(b: Builder, base: Base, x: Tensor, result: Tensor, lora: Lora, *held: Tensor) -> Tensor:
    """Runs DoraLinearVariant.forward: result plus the branch. `held`: locals of the caller."""
    base_result = None
    if lora.dropout:
        x = b.op("dropout", x, p=lora.dropout)
    else:
        base_result = result
    result = b.op("add", result, dora_linear(b, base, x, base_result, lora, ((x,) if lora.dropout else ()) + held))
    return result


@module_call
def dora_linear(
    b: Builder, base: Base, x: Tensor, base_result: Tensor | None, lora: Lora, held: tuple[Tensor, ...]
) -> Tensor:
    """Runs DoraLinearLayer.forward."""
    out = base.out
    product, eye, lora_weight = get_lora_weight(b, x.shape[-1], out, lora)
    lora_weight = F.to(b, lora_weight, x.dtype)
    weight = base.weights[0]
    if base.kind == "linear4bit":
        weight = b.op("dequantize4bit", weight, double=base.double, dtype=base.dtype)
    if base.kind == "linear8bit":
        weight = b.op("dequantize8bit", weight)
    is_parameter = base.kind == "conv1d" and weight.dtype == x.dtype
    weight = F.to(b, weight, x.dtype)
    if base.kind == "conv1d":
        weight = F.transpose(b, weight, 0, 1)
    weight_norm = get_weight_norm(b, weight, lora_weight, is_parameter)
    magnitude = b.parameter(f"{'.'.join(b.path)}.{MAGNITUDE_NAME}", (out,), lora.dtype, True)
    mag_norm_scale = b.op("view", b.op("div", magnitude, weight_norm), shape=(1, out))
    lora_result = F.linear(b, F.linear(b, x, "lora_A", lora.rank, lora.dtype), "lora_B", out, lora.dtype)
    if base_result is None:
        # transpose (peft/utils/other.py) makes a parameter that trains from a parameter, frozen or not
        if is_parameter:
            weight = b.op("new_leaf", weight)
        base_result = b.op("linear", x, weight)
    elif len(base.weights) == 2:
        base_result = b.op("sub", base_result, base.weights[1])
    own = (product, eye, lora_weight, weight, weight_norm, mag_norm_scale, lora_result)
    scaled = b.op("mul", b.op("add_scalar", mag_norm_scale), base_result)
    with b.locals(base_result, *own, *held, stack=scaled):
        del own
        result_dora = b.op("mul", mag_norm_scale, lora_result)
    result_dora = b.op("mul_scalar", result_dora)
    result_dora, before = b.op("add", scaled, result_dora), result_dora
    del scaled
    del before
    return result_dora


def get_lora_weight(b: Builder, inputs: int, out: int, lora: Lora) -> tuple[Tensor, Tensor, Tensor]:
    """Runs DoraLinearLayer.get_lora_weight: lora_B(lora_A(unit matrix)).T, [out, in]. Returns (product, unit matrix,
    result): the first two are what its graph holds, in the order in which it releases them.

    `packs` are the operands that a node of that graph saves.
    """
    path = ".".join(b.path)
    x_eye = F.create(b, "eye", (inputs, inputs), lora.dtype)
    (weight_a,) = b.lower(b.parameter(f"{path}.lora_A.weight", (lora.rank, inputs), lora.dtype, True))
    eye = x_eye
    if b.autocast is not None and x_eye.dtype != b.autocast:
        eye = b.op("cast", x_eye, dtype=b.autocast)
    with b.no_grad():
        product = b.op("linear", eye, weight_a, packs=(0,))
    if eye is not x_eye:
        b.unkept(eye)
    (weight_b,) = b.lower(b.parameter(f"{path}.lora_B.weight", (out, lora.rank), lora.dtype, True))
    with b.no_grad():
        lora_weight = b.op("linear", product, weight_b, packs=(1, 0))
        b.unkept(product)
        lora_weight = F.transpose(b, lora_weight, 0, 1)
    if eye is x_eye:
        b.unkept(eye)
    return product, eye, lora_weight


def get_weight_norm(b: Builder, weight: Tensor, lora_weight: Tensor, trains: bool = False) -> Tensor:
    """Runs DoraLinearLayer.get_weight_norm: the norm of each row of weight + scaling * lora_weight, [out]. trains: true
    for a weight that requires a gradient.
    """
    attrs: dict[str, object] = {"dtype": "fp32"} if b.autocast else {}
    if trains:
        attrs["packs"] = (0,)
    with b.no_grad():
        weight = b.op("add", weight, b.op("mul_scalar", lora_weight))
        norm = b.run("row_norm", weight, **attrs)[0]
        weight_norm = F.to(b, norm, weight.dtype)
        del norm
    return weight_norm


release_in_slot_order(__name__)
