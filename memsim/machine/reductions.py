"""The launch of a reduction (ATen/native/cuda/Reduce.cuh): its staging buffer, semaphores, and division."""

from __future__ import annotations

import math

Dims = tuple[tuple[int, int], ...]  # (size, stride in elements)
MOST_INDEX = 2**31 - 1


def _last_pow2(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def reduction_scratch(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dims: tuple[int, ...],
    itemsize: int,
    processors: int,
    threads: int = 2048,
    accumulate: int = 4,
) -> tuple[int, int]:
    """Bytes of the staging buffer and of the semaphores of a sum over `dims` (setReduceConfig). (0, 0) where one block
    does an output.

    shape and strides (elements) are the input's; itemsize in bytes; processors and threads per processor are the
    device's;
    accumulate: bytes of the accumulator, which is a float, except for any() and all(), which have a bool.
    """
    reduced = _coalesce([(shape[d], strides[d]) for d in dims if shape[d] != 1])
    kept = _coalesce([(shape[d], strides[d]) for d in range(len(shape)) if d not in dims and shape[d] != 1])
    inputs, outputs = 1, 1
    for size, _ in reduced:
        inputs *= size
    for size, _ in kept:
        outputs *= size
    if not reduced:
        return 0, 0
    fastest = not kept or reduced[0][1] < kept[0][1]
    dim0, dim1, stride = (inputs, outputs, reduced[0][1]) if fastest else (outputs, inputs, kept[0][1])
    vector = 1
    if stride == 1:
        if fastest and dim0 >= 128 and len(reduced) == 1:
            dim0 //= 4
        elif not fastest:
            vector = 4
            for n in (kept[0][0], *(s for _, s in [*reduced, *kept[1:]])):
                while n % vector:
                    vector //= 2
            dim0 //= vector
    most = 512 // vector
    dim0_pow2 = _last_pow2(dim0) if dim0 < most else most
    dim1_pow2 = _last_pow2(dim1) if dim1 < most else most
    width = min(dim0_pow2, 32)
    height = min(dim1_pow2, most // width)
    width = min(dim0_pow2, most // height)
    step_input, step_output = (width, 1) if fastest else (1, width)
    values = -(-inputs // step_input)
    if values < min(height * 16, 256):
        return 0, 0
    step_input *= height
    values = -(-inputs // step_input)
    grid = -(-(outputs // vector) // step_output)
    target = processors * (threads // (width * height))
    if values < 256 or grid > target:
        return 0, 0
    ctas = max(-(-values // 256), min(-(-target // grid), -(-values // 16)))
    if ctas <= 1:
        return 0, 0
    size = accumulate * outputs * ctas * (1 if fastest else width * vector)
    return size, 4 * grid


def _coalesce(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns (size, stride) pairs in ascending stride, with adjacent dimensions joined."""
    result: list[tuple[int, int]] = []
    for size, stride in sorted(dims, key=lambda d: d[1]):
        if result and result[-1][0] * result[-1][1] == stride:
            result[-1] = (result[-1][0] * size, result[-1][1])
        else:
            result.append((size, stride))
    return result


def is_indexed(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """True if 32 bits index every element, and every byte, that a tensor reaches."""
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return math.prod(shape) <= MOST_INDEX and reach * itemsize < MOST_INDEX


def parts(
    shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...], itemsize: int
) -> list[tuple[Dims, Dims]]:
    """Returns the reductions into which one is divided where 32 bits do not index it, each as (reduced, kept)
    dimensions of (size, stride in elements). The division is at the middle of the dimension that reaches farthest
    (TensorIterator.cpp, with_32bit_indexing).
    """
    reduced = tuple(_coalesce([(shape[d], strides[d]) for d in dims if shape[d] != 1]))
    kept = tuple(_coalesce([(shape[d], strides[d]) for d in range(len(shape)) if d not in dims and shape[d] != 1]))
    return _divided(reduced, kept, itemsize)


def _divided(reduced: Dims, kept: Dims, itemsize: int) -> list[tuple[Dims, Dims]]:
    every = (*reduced, *kept)
    if is_indexed(tuple(size for size, _ in every), tuple(stride for _, stride in every), itemsize):
        return [(reduced, kept)]
    far = max(range(len(every)), key=lambda d: (every[d][0] - 1) * every[d][1])
    size, stride = every[far]
    found: list[tuple[Dims, Dims]] = []
    for half in (size // 2, size - size // 2):
        cut = (*every[:far], (half, stride), *every[far + 1 :])
        found += _divided(cut[: len(reduced)], cut[len(reduced) :], itemsize)
    return found
