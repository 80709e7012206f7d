"""Operators of models that are several of PyTorch's: what runs for them where no technique puts something else in their
place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.framework.builder import Builder, Tensor

Composed = Callable[["Builder", tuple["Tensor", ...], Mapping[str, object]], tuple["Tensor", ...]]


def conv1d(b: Builder, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]) -> tuple[Tensor, ...]:
    """transformers' Conv1D: addmm of x.view(-1, in), which is made before autocast casts it, and so gets its gradient
    after what autocast cast.
    """
    x, *weights = inputs
    *size, inner = x.shape
    x = b.op("view", x, shape=(math.prod(size), inner))
    x = b.run("addmm", x, *weights, **{"label": "conv1d", **attrs})[0]
    return (b.op("view", x, shape=(*size, weights[0].shape[1])),)


def scaled_embedding(b: Builder, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Gemma2TextScaledWordEmbedding.forward of ids, weight and embed_scale."""
    ids, weight, scale = inputs
    label, told = str(attrs["label"]), bool(attrs.get("input_embeddings"))
    return (
        b.op(
            "mul",
            b.op("embedding", ids, weight, label=f"{label}.embedding"),
            scale_as(b, scale, weight.dtype),
            label=label,
            input_embeddings=told,
        ),
    )


def scale_as(b: Builder, scale: Tensor, dtype: str) -> Tensor:
    """embed_scale.to(dtype)."""
    return scale if scale.dtype == dtype else b.op("cast", scale, dtype=dtype)


COMPOSED: Mapping[str, Composed] = {"conv1d": conv1d, "scaled_embedding": scaled_embedding}
