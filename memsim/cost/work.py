"""The work that one execution of an operator asks of the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """The work that one execution asks of the device (cost/roofline.py turns it into seconds)."""

    # The unit that does the arithmetic: "vector", "matmul" (tensor cores, where the dtype has them) or "attention" (the
    # same, in a fused kernel).
    unit: str
    dtype: str  # the dtype of the arithmetic
    flops: float
    bytes: float  # bytes read from and written to the device's memory
