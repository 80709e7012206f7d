"""Element types by the short names that Runs and graphs use."""

from __future__ import annotations

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1, "complex64": 8}
FLOATING = ("fp32", "bf16", "fp16")


def promote(a: str, b: str) -> str:
    """Returns the dtype of an operation on tensors of dtypes a and b (torch.promote_types for the types here)."""
    if a == b:
        return a
    if a in FLOATING and b in FLOATING:
        return "fp32"
    if a in FLOATING or b in FLOATING:
        return a if a in FLOATING else b
    return "int64"
