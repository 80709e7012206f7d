"""Scratch of grouped products and of sorting, as the oracle recorded it (operators alone, on the devices named)."""

from __future__ import annotations

import pytest

from memsim.machine.kernels import platform_for
from memsim.operators.grouped import argument_bytes


@pytest.mark.parametrize(
    ("experts", "expected"), [(1, 84), (2, 120), (3, 204), (4, 240), (8, 480), (64, 3840), (128, 7680)]
)
def test_arguments_of_a_grouped_product(experts: int, expected: int) -> None:
    assert argument_bytes(experts) == expected


@pytest.mark.parametrize(
    ("sm", "processors", "rows", "columns", "expected"),
    [
        (90, 132, 8, 512, 67584),
        (90, 132, 512, 512, 67584),
        (90, 78, 64, 64, 39936),
        (100, 148, 128, 512, 795648),
        (100, 148, 129, 136, 871424),
        (103, 77, 1000, 256, 453376),
    ],
)
def test_workspace_of_a_grouped_product(sm: int, processors: int, rows: int, columns: int, expected: int) -> None:
    assert platform_for(sm, processors).grouped_workspace(rows, columns) == expected


@pytest.mark.parametrize(
    ("n", "bits", "expected"),
    [(1, 1, 1), (2304, 10, 1), (2305, 10, 43007), (3000, 10, 53759), (4097, 64, 83967), (4097, 11, 71679)],
)
def test_what_sorting_pairs_asks_for(n: int, bits: int, expected: int) -> None:
    assert platform_for(90).sort_bytes(n, bits) == expected
