"""Linear layers of frozen int8 weights (bitsandbytes: autograd/_functions.py MatMul8bitLt, backends/cuda/ops.py,
backends/default/ops.py).

Columns of x with a value of 6.0 or more, which LLM.int8() multiplies in fp16 beside the rest, depend on values: here
there are none, as in the recordings, whose values are zeros. A column of them would cost its two slices, of x and of
the weight, and the indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memsim.cost.work import Work
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import is_contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine

AUTOCAST = "bf16"  # under which a quantized model runs, whatever its weights were (simulation/build.py)
# Bytes moved for each element of x in fp16: quantized (2 read, 1 written), its magnitudes (2, 2), compared (2, 1), any
# of them (1), and read as int8 (1).
QUANTIZING = 12
SCALING = 10  # and for each of the result: int32 written and read, fp16 written
COPYING = 12  # and for each factor where fp32 copies are multiplied: fp32 written and read, 16 bits written and read


class Linear8bit(Kind):
    """bnb.matmul(x, weight, bias): x [..., in], weight [out, in] of a byte each, bias [out] → [..., out], in x's dtype.

    x stays with the node as an attribute of its context, where no hook of a checkpoint finds it, until the whole graph
    goes.
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (*x.shape[:-1], weight.shape[0])
        return (Inferred(shape, like(shape), x.dtype),)

    def in_python(self, attrs: Attrs) -> bool:
        return True

    def attached(self, inputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x, out = inputs[0], outputs[0]
        rows, inner = x.elements // x.shape[-1], x.shape[-1]
        half = m.alloc(2 * x.elements) if x.dtype != "fp16" else -1
        scales, quantized = quantize(m, rows, inner)
        magnitudes = m.alloc(2 * x.elements)
        outliers = m.alloc(x.elements)
        m.release(magnitudes)
        found = m.alloc(1)
        m.reduction_scratch((x.elements,), (1,), (0,), "bool", accumulate=1)
        m.release(found, outliers)
        if half >= 0:
            m.release(half)
        product = self._product(m, rows, inner, out.shape[-1], bool(attrs.get("below_autocast")))
        result = m.alloc(2 * out.elements)
        if out.dtype != "fp16":
            into.append(m.alloc(out.nbytes))
            m.release(result)
        else:
            into.append(result)
        m.release(product, quantized, scales)

    def _product(self, m: Machine, rows: int, inner: int, columns: int, below_autocast: bool) -> int:
        """int8_linear_matmul, in int32: by cuBLASLt, or where 4 does not divide the input features by matmul of fp32
        copies, which autocast casts unless this runs below it, as it does under selective checkpointing.
        """
        product = m.alloc(4 * rows * columns)
        if inner % 4 and below_autocast:
            x, weight = m.alloc(4 * rows * inner), m.alloc(4 * columns * inner)
            result = m.alloc(4 * rows * columns)
            m.workspace()
            m.release(x, weight)
            whole = m.alloc(4 * rows * columns)
            m.release(result, whole)
            return product
        if inner % 4:
            x, weight = m.alloc(4 * rows * inner), m.alloc(4 * columns * inner)
            lower_weight, lower_x = m.alloc(2 * columns * inner), m.alloc(2 * rows * inner)
            lower = m.alloc(2 * rows * columns)
            m.workspace()
            m.release(lower_x, lower_weight, x, weight)
            whole = m.alloc(4 * rows * columns)
            m.release(lower, whole)
        return product

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight = inputs[:2]
        grad = grads[0]
        copied = (
            m.alloc(ITEMSIZE[grad.dtype] * outputs[0].elements)
            if len(grad.shape) == 3 and not is_contiguous(grad.shape, grad.strides)
            else -1
        )
        dequantized = m.alloc(ITEMSIZE[x.dtype] * weight.elements)
        m.scratch(4 * weight.shape[0])  # the scales over 127
        of_x = m.grad(x.shape, like(x.shape), x.dtype, view=True)
        m.workspace()
        m.release(*((copied,) if copied >= 0 else ()), dequantized)
        return [(0, of_x)]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[1]

    def work(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
        """A product of int8, or where 4 does not divide the input features of what autocast casts fp32 copies to; with
        what it takes to quantize x and to scale the result.
        """
        x, weight, out = inputs[0], inputs[1], outputs[0]
        moved = QUANTIZING * x.elements + weight.elements + SCALING * out.elements
        if x.dtype != "fp16":  # x to fp16, and the result from it
            moved += (ITEMSIZE[x.dtype] + 2) * (x.elements + out.elements)
        if x.shape[-1] % 4:
            moved += COPYING * (x.elements + weight.elements) + 4 * out.elements
            return Work(self.unit, AUTOCAST, self.flops(inputs, outputs, attrs), moved)
        return Work(self.unit, "int8", self.flops(inputs, outputs, attrs), moved)

    def backward_work(self, inputs: Specs, outputs: Specs, attrs: Attrs, saved: Sequence[int]) -> Work:
        """The gradient of x: a product in x's own dtype, for which the weight is dequantized; autocast does not reach
        backward. PEFT's preparation makes that fp32 for most layers.
        """
        x, weight, out = inputs[0], inputs[1], outputs[0]
        # the weight: int8 read, cast, scaled in place, and read
        moved = out.nbytes + (1 + 4 * ITEMSIZE[x.dtype]) * weight.elements + x.nbytes
        return Work(self.unit, x.dtype, self.backward_flops(inputs, outputs, attrs), moved)


class Dequantize8bit(Kind):
    """int8_vectorwise_dequant(weight, scales) of weight [out, in]: a product with the scales, and that by 1/127, in
    fp32. Never differentiated.
    """

    differentiable = False
    flops_per_element = 2.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (weight,) = inputs
        return (Inferred(weight.shape, like(weight.shape), "fp32"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(dequantize_rows(m, inputs[0].elements, None))

    def read(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return inputs[0].elements


def dequantize_rows(m: Machine, elements: int, category: int | None) -> int:
    """Dequantizes so many weights; the storage of the result."""
    product = m.alloc(4 * elements, category)
    result = m.alloc(4 * elements, category)
    m.release(product)
    return result


def quantize(m: Machine, rows: int, columns: int, category: int | None = None) -> tuple[int, int]:
    """int8_vectorwise_quant: the largest magnitude of each row, and the rows in int8."""
    return m.alloc(4 * rows, category), m.alloc(rows * columns, category)


def quantize_rows(m: Machine, shape: tuple[int, ...], category: int, scratch: int) -> int:
    """Moves weights to the device in fp16 and quantizes them there (nn/modules.py, Int8Params._quantize); the storage
    of the int8 ones.

    The largest magnitude of each row stays.
    """
    weight = m.alloc(2 * shape[0] * shape[1], scratch)
    _, packed = quantize(m, shape[0], shape[1], category)
    m.release(weight)
    return packed
