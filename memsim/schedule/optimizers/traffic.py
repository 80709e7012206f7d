"""Bytes of device memory that a step of an optimizer moves, for the estimate of time."""

from __future__ import annotations

from collections.abc import Mapping

# Passes over a parameter's elements in its own dtype, by optimizer: reads and writes of parameter, gradient, state and
# temporaries (torch/optim/_functional code, foreach kernel by foreach kernel). The fused kernels read and write each
# tensor once.
PASSES: Mapping[str, float] = {
    "adam": 18,
    "adamw": 20,
    "adamw-for-loop": 20,
    "adamw-amsgrad": 23,
    "adamax": 16,
    "radam": 22,
    "adadelta": 27,
    "nadam": 24,
    "rmsprop": 13,
    "adagrad": 12,
    "adam-fused": 7,
    "adamw-fused": 7,
    "muon": 16,  # and the products of its iteration
    "sgd": 3,
    "sgd-momentum": 6,
    "adafactor": 16,
}
# bitsandbytes' fp32 state, read and written
STATE_BYTES = {
    "adam": 16,
    "adamw": 16,
    "ademamix": 24,
    "lion": 8,
    "sgd": 8,
    "rmsprop": 8,
    "adagrad": 8,
}
FUSED_PASSES = 3  # parameter read and written, gradient read
CLIPPING = 3  # the gradient read for its norm, then read and written


def optimizer_bytes(name: str, itemsize: int, clips: bool) -> float:
    """Bytes that a step moves for one element of a parameter."""
    if name in PASSES:
        moved = PASSES[name] * itemsize
    else:
        kind = name.removeprefix("paged-")
        moved = FUSED_PASSES * itemsize + STATE_BYTES[kind.split("-")[0]] / (4 if kind.endswith("-8bit") else 1)
    return moved + (CLIPPING * itemsize if clips else 0)
