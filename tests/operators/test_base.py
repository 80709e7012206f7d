"""Layouts of views and results follow PyTorch's rules; numpy, whose rules are the same, is the second opinion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from memsim.graph.layout import broadcast, contiguous, like, view_strides

ITEM = 8  # bytes of the numpy arrays here


@st.composite
def layouts(draw: st.DrawFn) -> np.ndarray:
    """An array with dimensions permuted, narrowed and expanded."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    x = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    if draw(st.booleans()):
        d = draw(st.integers(0, x.ndim - 1))
        x = x[tuple(slice(1, None) if i == d and size > 1 else slice(None) for i, size in enumerate(x.shape))]
    if draw(st.booleans()):
        x = np.broadcast_to(x, tuple(draw(st.sampled_from([1, 2, 3])) if size == 1 else size for size in x.shape))
    return x


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array and another shape of as many elements."""
    x, left, shape = draw(layouts()), 0, []
    left = x.size
    while left > 1:
        size = draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0]))
        shape.append(size)
        left //= size
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return x, tuple(shape) or (1,)


def strides_of(x: np.ndarray) -> tuple[int, ...]:
    return tuple(s // ITEM for s in x.strides)


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_a_view_is_possible_where_numpy_needs_no_copy(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    x, new = case
    strides = view_strides(x.shape, strides_of(x), new)
    assert (strides is not None) == np.may_share_memory(x, x.reshape(new))  # a copy has memory of its own
    if strides is not None:
        view = np.lib.stride_tricks.as_strided(x, new, tuple(s * ITEM for s in strides))
        assert np.array_equal(view, x.reshape(new))


@pytest.mark.parametrize(
    ("shape", "strides", "new", "expected"),
    [  # what torch 2.15's Tensor.view answers
        ((2, 3, 4), (12, 4, 1), (6, 4), (4, 1)),
        ((1, 14, 333, 64), (298368, 64, 896, 1), (1, 333, 896), None),
        ((1, 333, 14, 64), (298368, 896, 64, 1), (1, 333, 896), (298368, 896, 1)),
        ((3, 1, 1), (1, 3, 3), (3,), (1,)),
        ((4, 5), (0, 1), (20,), None),
        ((4, 5), (0, 1), (2, 2, 5), (0, 0, 1)),
    ],
)
def test_views_that_models_make(
    shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    assert view_strides(shape, strides, new) == expected


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_a_result_is_dense_in_the_order_of_its_operand(x: np.ndarray) -> None:
    strides = like(x.shape, (x.shape, strides_of(x)))
    rows = sorted(((stride, size) for stride, size in zip(strides, x.shape, strict=True) if size > 1), reverse=True)
    dense = contiguous(tuple(size for _, size in rows))
    assert tuple(stride for stride, _ in rows) == dense
    assert like(x.shape) == contiguous(x.shape)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3,)), ((4, 1, 6), (5, 1)), ((1,), (2, 2)), ((), (3,)), ((7, 1), (7, 9))]
)
def test_broadcast_as_numpy_does(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert broadcast(a, b) == broadcast(b, a) == np.broadcast_shapes(a, b)
