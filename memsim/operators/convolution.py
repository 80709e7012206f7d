"""PyTorch's own 2-d convolution (aten/src/ATen/native/cuda/ConvolutionMM2d.cu), which takes the images of a batch one
by one.

It is what runs where cuDNN is off. cuDNN, which a real GPU uses, makes the same results with a workspace of its own
choosing in the place of `columns`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import is_contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class Conv2d(Kind):
    """conv2d(x [B, C, Y, X], weight [O, C, k, k], bias [O], stride=k) → [B, O, Y/k, X/k]; keeps x and the weight. x
    needs no gradient.
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        tall, wide = weight.shape[2:]
        shape = (x.shape[0], weight.shape[0], x.shape[2] // tall, x.shape[3] // wide)
        return (Inferred(shape, like(shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage, inputs[1].storage)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        columns = m.alloc(self._columns(inputs, outputs))
        for _ in range(inputs[0].shape[0]):
            m.workspace()
        m.release(columns)

    def _columns(self, inputs: Specs, outputs: Specs) -> int:
        """Bytes of the patches of one image, as columns."""
        weight, out = inputs[1], outputs[0]
        return math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * ITEMSIZE[out.dtype]

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight, bias = inputs
        grad, shape = grads[0], outputs[0].shape
        copied = [] if is_contiguous(shape, grad.strides) else [m.alloc(outputs[0].nbytes)]
        of_bias = of_weight = None
        if bias.requires_grad:
            of_bias = m.grad(bias.shape, (1,), bias.dtype, parameter=True)
            m.reduction_scratch(shape, like(shape), (0, 2, 3), grad.dtype)
        if weight.requires_grad:
            of_weight = m.grad(weight.shape, like(weight.shape), weight.dtype, parameter=True)
            columns = m.alloc(self._columns(inputs, outputs))
            for _ in range(x.shape[0]):
                m.workspace()
            m.release(columns)
        m.release(*copied)
        return [(i, of) for i, of in ((1, of_weight), (2, of_bias)) if of is not None]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * math.prod(inputs[1].shape[1:])
