"""Linear layers of frozen 4-bit weights (bitsandbytes: autograd/_functions.py MatMul4Bit, backends/cuda/ops.py
gemm_4bit, functional.py dequantize_4bit).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memsim.cost.work import Work
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs
from memsim.operators.gemm4bit import is_fused

if TYPE_CHECKING:
    from memsim.machine.storages import Machine

BLOCK = 64  # weights that share a scale
DEQUANTIZING = 4.5  # bytes moved for each weight: half a byte read, bf16 written and read


class Linear4bit(Kind):
    """matmul_4bit(x, weight, bias): x [..., in], weight [out, in] of 4 bits, bias [out] → [..., out].

    A fused kernel where bitsandbytes' table says so; else the scales (nested ones: `double`) and the weight are
    dequantized for F.linear. Nothing is
    saved: backward dequantizes again.
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (*x.shape[:-1], weight.shape[0])
        return (Inferred(shape, like(shape), str(attrs["dtype"])),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x, weight = inputs[:2]
        out, inner = weight.shape
        always = m.platform.software.bnb_always_dequantizes
        if not always and is_fused(
            m.platform.sm, m.platform.processors, x.dtype, x.elements // inner, out, inner, BLOCK
        ):
            into.append(m.alloc(outputs[0].nbytes))
            return
        scales = 4 * -(-weight.elements // BLOCK)
        if always:
            self._dequantize_and_multiply(m, inputs, outputs, attrs, into)
            return
        nested, absmax = (m.alloc(scales), m.alloc(scales)) if attrs["double"] else (-1, -1)
        dequantized = m.alloc(2 * weight.elements)
        into.append(m.alloc(outputs[0].nbytes))
        m.workspace(lt=len(inputs) == 3)
        m.release(*((absmax, nested) if attrs["double"] else ()), dequantized)

    def _dequantize_and_multiply(
        self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]
    ) -> None:
        """F.linear(x, dequantize_4bit(weight).to(x.dtype).t(), bias) under autocast, which casts what is not in the
        lower precision.
        """
        x, weight = inputs[:2]
        absmax = m.alloc(4 * -(-weight.elements // BLOCK)) if attrs["double"] else -1
        dequantized = m.alloc(2 * weight.elements)
        if attrs["double"]:
            m.release(absmax)
        casts = []
        if x.dtype != attrs["dtype"]:
            full = m.alloc(ITEMSIZE[x.dtype] * weight.elements)
            m.release(dequantized)
            dequantized = full
            casts = [m.alloc(2 * spec.elements) for spec in (*inputs[2:], weight, x)]
        into.append(m.alloc(outputs[0].nbytes))
        m.workspace(lt=len(inputs) == 3)
        m.release(*reversed(casts), dequantized)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight = inputs[:2]
        absmax = m.alloc(4 * -(-weight.elements // BLOCK)) if attrs["double"] else -1
        dequantized = m.alloc(2 * weight.elements)
        if attrs["double"]:
            m.release(absmax)
        of_x = m.grad(x.shape, like(x.shape), grads[0].dtype, view=len(x.shape) > 2)
        m.workspace()
        m.release(dequantized)
        return [(0, of_x)]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[1]

    def read(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        """The packed weight, and it dequantized: written once, and read."""
        return inputs[0].nbytes + DEQUANTIZING * inputs[1].elements

    def backward_work(self, inputs: Specs, outputs: Specs, attrs: Attrs, saved: Sequence[int]) -> Work:
        """The gradient of x, for which the weight is dequantized again."""
        x, weight = inputs[:2]
        return Work(
            self.unit,
            x.dtype,
            self.flops(inputs, outputs, attrs),
            outputs[0].nbytes + x.nbytes + DEQUANTIZING * weight.elements,
        )


class Dequantize4bit(Kind):
    """dequantize_4bit(weight) of weight [out, in]: a tensor of `dtype`; nested scales (`double`) are dequantized first.
    Never differentiated.
    """

    differentiable = False
    flops_per_element = 1.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (weight,) = inputs
        return (Inferred(weight.shape, like(weight.shape), str(attrs["dtype"])),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        absmax = m.alloc(4 * -(-inputs[0].elements // BLOCK)) if attrs["double"] else -1
        into.append(m.alloc(outputs[0].nbytes))
        if attrs["double"]:
            m.release(absmax)

    def read(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return inputs[0].elements / 2


class Recast(Kind):
    """parameter.data = parameter.data.to(dtype), once: the schedule executes it, for it changes what later passes find.
    The result is the parameter.
    """

    differentiable = False
    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (parameter,) = inputs
        return (Inferred(parameter.shape, parameter.strides, str(attrs["dtype"]), alias=0),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        """Nothing: see Training.recast."""
        into.append(-1)


def quantize(m: Machine, elements: int, double: bool, category: int, scratch: int, first: bool) -> int:
    """Moves bf16 weights to the device and quantizes them there to NF4 (functional.py, quantize_4bit); the storage of
    the packed result.

    The scales, the table of values and, with `double`, the scales' own quantization stay. `first`: the map for the
    scales is made, and kept.
    """
    blocks = -(-elements // BLOCK)
    weight, absmax = m.alloc(2 * elements, scratch), m.alloc(4 * blocks, category)
    packed = m.alloc((elements + 1) // 2, category)
    m.alloc(16 * 4, category)  # the 16 values, normalized by their largest
    magnitude, largest = m.alloc(16 * 4, scratch), m.alloc(4, scratch)
    m.release(magnitude, largest)
    if double:
        m.alloc(4, category)  # the mean, taken off
        m.reduction_scratch((blocks,), (1,), (0,), "fp32")
        centred = m.alloc(4 * blocks, scratch)
        if first:
            m.alloc(256 * 4, category)
        m.alloc(4 * -(-blocks // 256), category)
        m.alloc(blocks, category)
        m.alloc(256 * 4, category)  # each state has a copy of the map
        m.release(centred, absmax)
    m.release(weight)
    return packed
