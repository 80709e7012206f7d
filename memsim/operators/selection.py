"""torch.where and torch.clamp by tensors: what a condition chooses, and its gradients (tools/autograd/derivatives.yaml,
FunctionsManual.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import broadcast, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


def expanded(
    shape: tuple[int, ...], own: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An operand of `own` shape and strides as one of `shape`: dimensions that it repeats have no stride."""
    return shape, tuple(step if have == size else 0 for size, have, step in zip(shape, own, strides, strict=True))


class Where(Kind):
    """torch.where(condition, x, number): condition and x of as many dimensions; keeps the condition."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        condition, x = inputs
        shape = broadcast(condition.shape, x.shape)
        return (Inferred(shape, like(shape, *(expanded(shape, spec.shape, spec.strides) for spec in inputs)), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        number = m.alloc(ITEMSIZE[inputs[1].dtype])
        into.append(m.alloc(outputs[0].nbytes))
        m.release(number)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        condition, grad = inputs[0], grads[0]
        zero = m.alloc(ITEMSIZE[grad.dtype])
        strides = like(grad.shape, expanded(grad.shape, condition.shape, condition.strides), (grad.shape, grad.strides))
        result = m.grad(grad.shape, strides, grad.dtype)
        m.release(zero)
        return [(1, result)]


class AnyInfinite(Kind):
    """torch.isinf(x).any(): one bool."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred((), (), "bool"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x = inputs[0]
        absolute = m.alloc(x.nbytes)
        infinite = m.alloc(x.elements)
        m.release(absolute)
        into.append(m.alloc(1))
        m.reduction_scratch((x.elements,), (1,), (0,), "bool", accumulate=1)
        m.release(infinite)


class ClampByTensors(Kind):
    """torch.clamp(x, low, high) by tensors of one number, which need no gradient; keeps all three. What backward
    compares is seen in recordings.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        return (Inferred(x.shape, like(x.shape, (x.shape, x.strides)), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, low, high = inputs
        return (high.storage, low.storage, x.storage)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        n = inputs[0].elements
        ordered = m.alloc(1)
        first = [m.alloc(n) for _ in range(3)]
        inside = m.alloc(n)
        m.release(*reversed(first))
        second = [m.alloc(n) for _ in range(2)]
        passes = m.alloc(n)
        m.release(*reversed(second))
        zeros = m.like(grads[0])
        result = m.like(grads[0])
        m.discard(zeros)
        m.release(passes, inside, ordered)
        return [(0, result)]
