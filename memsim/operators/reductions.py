"""Reductions, softmax, and the scratch memory of split reductions (ATen/native/cuda/Reduce.cuh)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class MeanLast(Kind):
    """x.mean(-1, keepdim=True); backward expands the gradient and divides: one tensor of x's shape."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = (*inputs[0].shape[:-1], 1)
        return (Inferred(shape, like(shape), inputs[0].dtype),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        m.reduction_scratch(inputs[0].shape, inputs[0].strides, (len(inputs[0].shape) - 1,), inputs[0].dtype)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, like(inputs[0].shape), inputs[0].dtype))]


class MaxLast(Kind):
    """x.max(-1, keepdim=True): values, and int64 indices, which are kept; backward scatters into zeros of x's shape."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = (*inputs[0].shape[:-1], 1)
        return (
            Inferred(shape, like(shape), inputs[0].dtype),
            Inferred(shape, like(shape), "int64", differentiable=False),
        )

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, like(inputs[0].shape), inputs[0].dtype))]


class RowNorm(Kind):
    """torch.linalg.norm(x, dim=1) of x [N, M], in x's dtype, or in fp32 where autocast says so (`dtype`); never
    differentiated here.
    """

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(x.shape[:1], (1,), str(attrs.get("dtype", x.dtype))),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        (x,) = inputs
        into.append(m.alloc(outputs[0].nbytes))
        m.reduction_scratch(x.shape, x.strides, (1,), x.dtype, out=outputs[0].dtype)

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * inputs[0].elements


class LogSoftmax(Kind):
    """log_softmax over the last dimension; keeps its result; backward makes one tensor of x's shape."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(x.shape, like(x.shape), str(attrs.get("dtype", x.dtype))),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[0].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, like(inputs[0].shape), inputs[0].dtype))]


class Softmax(LogSoftmax):
    """softmax over the last dimension; its backward first multiplies gradient and result
    (ATen/native/cuda/SoftMax.cu).
    """

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        edges = super().backward(m, inputs, outputs, attrs, grads)
        m.scratch(outputs[0].nbytes)
        return edges


class SafeSoftmax(Softmax):
    """at::_safe_softmax: the softmax, and then zeros in the rows that hold nothing but minus infinity
    (ATen/native/SoftMax.cpp).
    """

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x = inputs[0]
        into.append(m.alloc(outputs[0].nbytes))
        m.scratch(x.elements, x.elements // x.shape[-1], ITEMSIZE[x.dtype])
