"""Complex numbers, by which rotary embeddings may turn pairs of elements (aten/src/ATen/native/ComplexHelper.h,
ConjugateFallback.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs, pointwise

if TYPE_CHECKING:
    from memsim.machine.storages import Machine

COMPLEX = "complex64"


class ViewAsComplex(Kind):
    """torch.view_as_complex(x) of fp32 [..., 2]: a view; backward views the gradient as pairs, once it
    is contiguous.
    """

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(x.shape[:-1], tuple(stride // 2 for stride in x.strides[:-1]), COMPLEX, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        whole = m.contiguous(grads[0])
        pairs = m.view(whole, inputs[0].shape, (*(2 * stride for stride in whole.strides), 1))
        pairs.dtype = "fp32"
        m.discard(whole)
        return [(0, pairs)]


class ViewAsReal(Kind):
    """torch.view_as_real(x) of complex [...]: a view [..., 2]; backward the other way, once the gradient
    is contiguous.
    """

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred((*x.shape, 2), (*(2 * stride for stride in x.strides), 1), "fp32", alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        whole = m.contiguous(grads[0])
        numbers = m.view(whole, inputs[0].shape, tuple(stride // 2 for stride in whole.strides[:-1]))
        numbers.dtype = COMPLEX
        m.discard(whole)
        return [(0, numbers)]


class ComplexMul(Kind):
    """x * y of complex numbers, of which only x needs a gradient: grad * y.conj(), for which the lazy conjugate is made
    a tensor of its own.
    """

    flops_per_element = 6.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs, COMPLEX)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        conjugate = m.alloc(inputs[1].nbytes)
        result = m.like(grads[0])
        m.release(conjugate)
        return [(0, result)]
