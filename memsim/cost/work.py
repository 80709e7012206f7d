"""What one execution of an operator asks of the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """What one execution asks of the device (cost/roofline.py turns it into seconds)."""

    # what does the arithmetic: "vector", "matmul" (tensor cores, where the dtype has them) or "attention" (the same, in
    # a fused kernel)
    unit: str
    dtype: str  # in which it is done
    flops: float
    bytes: float  # read from and written to the device's memory
