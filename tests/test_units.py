"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from memsim.units import LARGEST, UNITS, read_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 24 * 2**30),
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("24", 24 * 2**30),
        (24, 24 * 2**30),
        (0.5, 2**29),
        ("512B", 512),
        ("1e3 MB", 10**9),
    ],
)
def test_sizes(text: object, count: int) -> None:
    assert read_bytes(text) == count


@given(st.integers(1, 2**20), st.sampled_from(sorted(UNITS)))
def test_every_unit(number: int, unit: str) -> None:
    if number * UNITS[unit] <= LARGEST:
        assert read_bytes(f"{number}{unit}") == number * UNITS[unit]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GiB",
        "24 G",
        "24GiBs",
        "0",
        "0GiB",
        "-1GiB",
        "1,5GiB",
        "nan",
        "inf",
        "1e99GiB",
        True,
        None,
        [],
        float("inf"),
        float("nan"),
        -1,
        0,
        2**60,
    ],
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match=r"size|unit|TiB") as error:
        read_bytes(value)
    assert "\n" not in str(error.value)


def test_the_nearest_unit_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean MiB or MB"):
        read_bytes("4Mi")
