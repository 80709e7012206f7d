"""Pointwise operators: their results, and what their gradients allocate (tools/autograd/derivatives.yaml,
FunctionsManual.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE, promote
from memsim.graph.layer_graph import TensorSpec
from memsim.graph.layout import broadcast, like
from memsim.operators.base import Attrs, Inferred, Kind

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine

Specs = Sequence[TensorSpec]
Grads = Sequence["Grad"]
Edges = list[tuple[int, "Grad"]]


def pointwise(inputs: Specs, dtype: str | None = None) -> tuple[Inferred, ...]:
    """The result of an elementwise operation on one or two tensors."""
    shape, result = inputs[0].shape, inputs[0].dtype
    for other in inputs[1:]:
        shape, result = (
            broadcast(shape, other.shape),
            promote(result, other.dtype) if other.shape or not result else result,
        )
    return (Inferred(shape, like(shape, *((spec.shape, spec.strides) for spec in inputs)), dtype or result),)


class Unary(Kind):
    """A pointwise function of one tensor without gradient memory of its own: y = f(x), dx = one new tensor."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.like(grads[0]))]


class SavesInput(Unary):
    """silu, gelu, tanh-approximated gelu …: backward reads x and makes dx in one kernel."""

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)


class SavesResult(Unary):
    """sigmoid, tanh, exp …: backward reads y and makes dx in one kernel."""

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[0].storage,)


class AddScalar(Unary):
    """x + c: the gradient passes through."""

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.same(grads[0]))]


class Cast(Kind):
    """x.to(dtype): a copy; backward copies back."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs, str(attrs["dtype"]))

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.like(grads[0], dtype=inputs[0].dtype))]


class Clone(Kind):
    """x.clone() or x.contiguous() that copies: `contiguous` says the layout of the copy."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (
            Inferred(
                x.shape, like(x.shape) if attrs.get("contiguous") else like(x.shape, (x.shape, x.strides)), x.dtype
            ),
        )

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.same(grads[0]))]


class Clamp(SavesInput):
    """x.clamp(min, max): `limits`, one or both. clamp_backward picks the gradient or a zero by comparing x, with each
    limit.
    """

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x = inputs[0]
        zero = m.alloc(ITEMSIZE[grads[0].dtype], m.scratch_category)
        inside = [m.grad(x.shape, like(x.shape, (x.shape, x.strides)), "bool") for _ in range(int(attrs["limits"]))]  # type: ignore[call-overload]
        result = m.like(grads[0])
        m.discard(*reversed(inside))
        m.release(zero)
        return [(0, result)]


class ClampInPlace(Clamp):
    """x.clamp_(min, max): what x was is copied first, where it is asked for."""

    in_place = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        result = Inferred(x.shape, x.strides, x.dtype, alias=0)
        kept = x.requires_grad and not attrs.get("no_grad")
        return (result, Inferred(x.shape, x.strides, x.dtype, differentiable=False)) if kept else (result,)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return tuple(spec.storage for spec in outputs[1:])


class Add(Kind):
    """a + b: both gradients are the incoming one."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(i, m.same(grads[0])) for i, spec in enumerate(inputs) if spec.requires_grad]


class AddInPlace(Kind):
    """x.add_(y): both gradients are the incoming one."""

    in_place = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        return (Inferred(x.shape, x.strides, x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(i, m.same(grads[0])) for i, spec in enumerate(inputs) if spec.requires_grad]


class Mul(Kind):
    """a * b: keeps each for the other's gradient. The gradients are full-sized; the engine reduces broadcast ones."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        a, b = inputs
        return (*((b.storage,) if a.requires_grad else ()), *((a.storage,) if b.requires_grad else ()))

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        a, b = inputs
        other = m.like(grads[0], dtype=promote(grads[0].dtype, a.dtype)) if b.requires_grad else None
        first = m.like(grads[0], dtype=promote(grads[0].dtype, b.dtype)) if a.requires_grad else None
        return [(i, grad) for i, grad in ((0, first), (1, other)) if grad is not None]


class Sub(Add):
    """a - b: the gradient of a is the incoming one, that of b its negative."""

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        a, b = inputs
        other = [(1, m.like(grads[0]))] if b.requires_grad else []
        return [*([(0, m.same(grads[0]))] if a.requires_grad else []), *other]


class Div(Kind):
    """a / b, where only a needs a gradient: grad / b."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.like(grads[0]))]


class WhereElse(Unary):
    """torch.where(mask, x, number) of x and a mask that is kept. Backward: torch.where(mask, grad, 0), whose zero is a
    tensor.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs[:1])

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        zero = m.alloc(ITEMSIZE[grads[0].dtype])
        result = m.like(grads[0])
        m.release(zero)
        return [(0, result)]


class Square(Kind):
    """x.pow(2). pow_backward: grad * (2 * x.pow(1)): two temporaries and the result."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        power, scaled = m.like(grads[0]), m.like(grads[0])
        result = m.like(grads[0])
        m.discard(scaled, power)
        return [(0, result)]


class Rsqrt(Kind):
    """x.rsqrt(). rsqrt_backward: -0.5 * grad * result.pow(3)."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[0].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        scaled, cube = m.like(grads[0]), m.like(grads[0])
        result = m.like(grads[0])
        m.discard(cube, scaled)
        return [(0, result)]


class Dropout(Kind):
    """native_dropout: a bool mask, kept, and the result; backward multiplies in one kernel."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        out = pointwise(inputs)[0]
        return (out, Inferred(out.shape, out.strides, "bool", differentiable=False))

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[1].storage,)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        mask = m.alloc(outputs[1].nbytes)
        into += [m.alloc(outputs[0].nbytes), mask]

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.like(grads[0]))]
