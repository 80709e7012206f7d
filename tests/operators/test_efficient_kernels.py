"""The kernels of the memory-efficient attention's backward, and their workspaces."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from memsim.operators.efficient_kernels import backward_kernel, backward_workspace


@pytest.mark.parametrize(
    ("heads", "s", "d", "half", "sm", "large", "expected"),
    [
        (14, 1000, 64, False, 80, True, 3673600),
        (8, 777, 128, False, 80, True, 3671808),
        (8, 777, 128, True, 80, True, 3670912),
        (8, 777, 160, True, 80, True, 19139200),
        (8, 777, 256, True, 80, True, 20975104),
        (8, 777, 128, True, 86, False, 10226944),
        (8, 777, 160, False, 86, False, 5116800),
        (12, 777, 96, True, 120, False, 15340416),  # sm 120 has no kernel for heads of 96
    ],
)
def test_workspace(heads: int, s: int, d: int, half: bool, sm: int, large: bool, expected: int) -> None:
    assert backward_workspace(heads, (s, s), (d, d), half, sm, large) == expected


def test_many_heads_split_no_keys() -> None:
    """From 200 heads on there is one sum of dk and dv a head; below, one for each block of keys."""
    tiles = 3 * 3 * (128 * 64 + 4)
    assert backward_workspace(200, (333, 333), (160, 160), True, 80, True) == 200 * 4 * (tiles + 2 * 64 * 256)
    assert backward_workspace(8, (333, 333), (160, 160), True, 80, True) == 8 * 4 * (tiles + 2 * 6 * 64 * 256)


@given(d=st.integers(1, 512), half=st.booleans(), sm=st.sampled_from([75, 80, 86, 89, 90, 100, 120]))
def test_every_width_has_a_kernel_on_every_device(d: int, half: bool, sm: int) -> None:
    kernel = backward_kernel(d, half, sm, sm in (80, 90, 100))
    assert d <= kernel.widest
    assert not kernel.only or sm in kernel.only


def test_kernels_for_some_devices_alone_know_no_dropout() -> None:
    assert backward_kernel(96, True, 89, False).rows == 128
    assert backward_kernel(96, True, 89, False, dropout=True).rows == 64
    assert backward_kernel(128, True, 80, True) == backward_kernel(128, True, 80, True, dropout=True)
