"""Operators of a mixture of experts beside its products: top-k, sorting, gathering rows, sums.

Sizes never depend on what the values are, so neither do these requests on how tokens are routed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import promote
from memsim.graph.layout import contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine

SMALL_SORT = 4096  # elements that the in-place sort takes (ATen/native/cuda/Sort.cpp, should_use_small_sort)


class TopK(Kind):
    """torch.topk(x, k) over the last dimension: values and int64 indices, the indices kept; backward scatters into
    zeros of x's shape.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        shape = (*x.shape[:-1], int(attrs["k"]))  # type: ignore[call-overload]
        return (
            Inferred(shape, contiguous(shape), x.dtype),
            Inferred(shape, contiguous(shape), "int64", differentiable=False),
        )

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (outputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]


class LargestInGroup(TopK):
    """x.max(dim=-1): values and int64 indices, kept."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        shape = x.shape[:-1]
        return (
            Inferred(shape, contiguous(shape), x.dtype),
            Inferred(shape, contiguous(shape), "int64", differentiable=False),
        )


class Gather(Kind):
    """x.gather(dim, index) of int64 index, which is kept; backward scatters into zeros of x's shape."""

    gathers = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, index = inputs
        return (Inferred(index.shape, contiguous(index.shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage, inputs[0].storage)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]


class MaskedFill(Kind):
    """x.masked_fill(mask, number): the mask is kept; backward fills a copy of the gradient."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        return (Inferred(x.shape, contiguous(x.shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(grads[0].shape, contiguous(grads[0].shape), grads[0].dtype))]


class Sort(Kind):
    """torch.sort of int64 [N]: values and indices, with as many indices for a start, and what CUB's radix sort asks for
    where there are more than SMALL_SORT elements (ATen/native/cuda/Sort.cpp, SortStable.cu)."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(x.shape, contiguous(x.shape), x.dtype), Inferred(x.shape, contiguous(x.shape), "int64"))

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into += [m.alloc(outputs[0].nbytes), m.alloc(outputs[1].nbytes)]
        n = inputs[0].elements
        m.scratch(8 * n, *([m.platform.sort_bytes(n, 64)] if n > SMALL_SORT else []))


class Scan(Kind):
    """x.cumsum(0, dtype=int32) of int32 [N], with the scratch memory of CUB's scan; N is below 1024, and so one of its
    tiles.
    """

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred(inputs[0].shape, contiguous(inputs[0].shape), "int32"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        m.scratch(m.platform.short_scan_bytes())


class Index(Kind):
    """x[ids]: rows of x [N, …] for int64 ids [M], which are kept; `dim` is the dimension that is indexed. Backward adds
    the gradient's rows into zeros of x's shape after sorting the ids (ATen/native/cuda/Indexing.cu,
    index_put_with_sort_kernel).
    """

    gathers = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, ids = inputs
        dim = int(attrs.get("dim", 0))  # type: ignore[call-overload]
        shape = (*x.shape[:dim], *ids.shape, *x.shape[dim + 1 :])
        return (Inferred(shape, contiguous(shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, ids = inputs
        n = ids.elements
        result = m.grad(x.shape, contiguous(x.shape), x.dtype)
        wrapped = m.alloc(8 * n)
        linear = m.alloc(8 * n)  # ids times the stride of a row
        m.release(wrapped)
        value = m.contiguous(grads[0])
        sorted_ids, original, order = m.alloc(8 * n), m.alloc(8 * n), m.alloc(8 * n)
        m.scratch(m.platform.sort_bytes(n, (x.shape[0] - 1).bit_length()))
        m.release(order, original, sorted_ids, value.storage, linear)
        return [(0, result)]


class Sum(Kind):
    """x.sum(dim, dtype), with `keepdim` or without: backward expands the gradient, a view."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        dim = _dim(inputs, attrs)
        shape = (*x.shape[:dim], *((1,) if attrs.get("keepdim") else ()), *x.shape[dim + 1 :])
        return (Inferred(shape, like(shape), str(attrs.get("dtype", x.dtype))),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        (x,) = inputs
        into.append(m.alloc(outputs[0].nbytes))
        m.reduction_scratch(x.shape, x.strides, (_dim(inputs, attrs),), x.dtype)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        dim, strides = _dim(inputs, attrs), list(grads[0].strides)
        if attrs.get("keepdim"):
            strides[dim] = 0
        else:
            strides.insert(dim, 0)
        return [(0, m.view(grads[0], inputs[0].shape, tuple(strides)))]


def _dim(inputs: Specs, attrs: Attrs) -> int:
    dim: int = attrs["dim"]  # type: ignore[assignment]
    return dim % len(inputs[0].shape)


class DivideInPlace(Kind):
    """a /= b. The quotient's gradients need a and b: a is copied before it is overwritten, and both are kept.

    div_tensor_other_backward: -grad * ((a / b) / b), then reduced to b's shape; div_tensor_self_backward: grad / b.
    """

    in_place = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        a, b = inputs
        result = Inferred(a.shape, a.strides, a.dtype, alias=0)
        copied = not attrs.get("no_grad") and b.requires_grad
        return (result, Inferred(a.shape, a.strides, a.dtype, differentiable=False)) if copied else (result,)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage, *(spec.storage for spec in outputs[1:]))

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        of_b = None
        if inputs[1].requires_grad:
            wider = promote(inputs[0].dtype, inputs[1].dtype)
            once, twice, negated = m.like(grads[0], wider), m.like(grads[0], wider), m.like(grads[0])
            of_b = m.like(grads[0], wider)
            m.discard(negated, twice, once)
        of_a = m.like(grads[0], promote(grads[0].dtype, inputs[1].dtype))
        return [(0, of_a), *([(1, of_b)] if of_b else [])]
