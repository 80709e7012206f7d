"""The layout of tensors in their storages: strides in elements, and what operators make of them."""

from __future__ import annotations

from collections.abc import Sequence


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides, in elements, of a contiguous tensor."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return tuple(strides)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if Tensor.is_contiguous() is: the stride of a dimension with one element does not matter."""
    return is_laid_out(shape, strides, contiguous(shape))


def is_laid_out(shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """True if a tensor of these strides lies in memory as one of the wanted strides does."""
    return all(size == 1 or have == want for size, have, want in zip(shape, strides, wanted, strict=True))


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of an elementwise operation on shapes a and b."""
    if len(a) < len(b):
        a = (1,) * (len(b) - len(a)) + a
    elif len(b) < len(a):
        b = (1,) * (len(a) - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def like(shape: tuple[int, ...], *operands: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the strides that TensorIterator gives a result: dense, in the dimension order of the first operand
    (shape, strides) that has its shape.
    """
    for operand, strides in operands:
        if operand == shape:
            if 0 in strides:
                return _dense(shape, _ordered(shape, operands))
            return _dense(shape, sorted(range(len(shape)), key=lambda d: (-strides[d], d)))
    return _dense(shape, range(len(shape)))


def _dense(shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a dense tensor whose dimensions lie in this order, the slowest first."""
    result, step = [0] * len(shape), 1
    for d in reversed(order):
        result[d] = step
        step *= max(shape[d], 1)
    return tuple(result)


def _ordered(shape: tuple[int, ...], operands: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[int]:
    """Orders dimensions as TensorIteratorBase::reorder_dimensions does. A dimension in which an operand is expanded
    does not count, and keeps its place.
    """
    rows = [strides for operand, strides in operands if operand == shape]

    def swaps(a: int, b: int) -> int:
        for strides in rows:
            if strides[a] and strides[b] and strides[a] != strides[b]:
                return -1 if strides[a] < strides[b] else 1
            if strides[a] and strides[b] and shape[a] > shape[b]:
                return 1
        return 0

    order = list(reversed(range(len(shape))))  # the fastest first
    for i in range(1, len(order)):
        at = i
        for before in range(i - 1, -1, -1):
            found = swaps(order[before], order[at])
            if found < 0:
                break
            if found > 0:
                order[before], order[at] = order[at], order[before]
                at = before
    return order[::-1]


def view_strides(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the strides of a view with the new shape, or None where only a copy will do
    (at::detail::computeStride).
    """
    if not shape:
        return (1,) * len(new) if all(size == 1 for size in new) else None
    if 0 in shape:
        return strides if shape == new else None
    result = [0] * len(new)
    view_d = len(new) - 1
    chunk = strides[-1]
    tensor_numel, view_numel = 1, 1
    for d in range(len(shape) - 1, -1, -1):
        tensor_numel *= shape[d]
        if d == 0 or (shape[d - 1] != 1 and strides[d - 1] != tensor_numel * chunk):
            while view_d >= 0 and (view_numel < tensor_numel or new[view_d] == 1):
                result[view_d] = view_numel * chunk
                view_numel *= new[view_d]
                view_d -= 1
            if view_numel != tensor_numel:
                return None
            if d > 0:
                chunk = strides[d - 1]
                tensor_numel, view_numel = 1, 1
    return tuple(result) if view_d == -1 else None
