"""The dtypes that follow from a Run's precision: that of the weights, and that of autocast."""

from __future__ import annotations

PRECISIONS = ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16", "tf32")
AUTOCAST = {"amp-bf16": "bf16", "amp-fp16": "fp16"}
# Precision → dtype of the weights, where it is not its own name.
WEIGHTS = {"amp-bf16": "fp32", "amp-fp16": "fp32", "tf32": "fp32"}
