"""Sizes of libraries' temporary storage, held against recordings."""

from __future__ import annotations

import pytest

from memsim.graph.layout import contiguous
from memsim.machine.kernels import platform_for
from memsim.machine.reductions import reduction_scratch
from memsim.operators.attention import key_splits
from memsim.stacks.known import HF_4_48


@pytest.mark.parametrize(
    ("n", "bits", "expected"),
    [
        (3073, 10, 55295),
        (4096, 15, 72191),
        (4096, 18, 74239),
        (10000, 18, 169983),
        (16384, 18, 273919),
        (50000, 15, 819199),
        (65536, 10, 1071615),
        (4000, 8, 4607),
        (16384, 8, 7679),
    ],
)
def test_radix_sort(n: int, bits: int, expected: int) -> None:
    assert platform_for(80).sort_bytes(n, bits) == expected


def test_radix_sort_of_hopper_takes_larger_tiles() -> None:
    assert platform_for(90).sort_bytes(65537, 10) == 1069055


def test_scan_grows_by_a_tile_of_896() -> None:
    assert [platform_for(80).scan_bytes(n) for n in (128, 14336, 14337, 32768)] == [1279, 1279, 1535, 1791]


@pytest.mark.parametrize(("sm", "last"), [(80, 21504), (86, 5120), (90, 78848)])
def test_unique_by_key_is_tuned_for_each_architecture(sm: int, last: int) -> None:
    stack = platform_for(sm)
    assert stack.unique_bytes(last) == 1279
    assert stack.unique_bytes(last + 1) == 1535


@pytest.mark.parametrize(
    ("sm", "n", "rows", "sort", "unique", "scan"),
    [
        (80, 16384, 32000, 284159, 767, 1279),
        (80, 1048576, 32000, 17074687, 5375, 1535),
        (90, 100000, 128256, 1639423, 767, 2559),
        (75, 4000000, 3000000, 65471999, 100607, 54527),
    ],
)
def test_embedding_sort_of_the_older_stack(sm: int, n: int, rows: int, sort: int, unique: int, scan: int) -> None:
    """As torch 2.6.0 asked for them on the virtual GPU."""
    found = platform_for(sm, software=HF_4_48).embedding_sort(n, rows, 64)
    assert found is not None
    assert (found.sort, found.unique, found.scan) == (sort, unique, scan)


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((1, 1024, 896), (0, 1), (7340032, 28)),
        ((1024, 128), (0,), (1048576, 4)),
        ((151936, 896), (0, 1), (4156, 4)),
        ((151936, 896), (0,), (113311744, 28)),
        ((151936, 1), (0,), (76, 4)),
        ((1, 1024, 896), (2,), (0, 0)),
    ],
)
def test_split_reductions(shape: tuple[int, ...], dims: tuple[int, ...], expected: tuple[int, int]) -> None:
    strides = contiguous(shape)
    assert reduction_scratch(shape, strides, dims, 2, 108) == expected


def test_flash_attention_splits_keys_only_where_blocks_are_few() -> None:
    assert key_splits(14, 333, 333, 64, 108) == 2
    assert key_splits(14, 1024, 1024, 64, 108) == 1
    assert key_splits(64, 1024, 1024, 128, 108) == 1
