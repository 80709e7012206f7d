"""Scaled dot-product attention: FlashAttention-2 as PyTorch builds it (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.operators.base import Attrs, Inferred, Kind, like
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.schedule.machine import Machine


def _round(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class FlashAttention(Kind):
    """q [B, H, S, D], k and v [B, K, S, D] → [B, H, S, D] laid out as [B, S, H, D]; keeps q, k, v, the result, the log-sum-exp and two seeds."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        q = inputs[0]
        b, h, s, d = q.shape
        out = Inferred(q.shape, (s * h * d, d, h * d, 1), q.dtype)
        lse = Inferred((b, h, s), like((b, h, s)), "fp32", differentiable=False)
        seeds = Inferred((2,), (1,), "int64", differentiable=False), Inferred((), (), "int64", differentiable=False)
        return (out, lse, *seeds)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        q, k, v = inputs
        out, lse, seed, unused = outputs
        return (k.storage, q.storage, v.storage, lse.storage, out.storage, seed.storage, unused.storage)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        q, k, v = inputs
        b, h, s, d = q.shape
        kv = k.shape[1]
        dq, dk, dv = (m.grad(x.shape, (x.shape[2] * x.shape[1] * d, d, x.shape[1] * d, 1), x.dtype, view=True) for x in (q, k, v))
        rounded = _round(s, 128)
        head = _round(d, 32 if d <= 128 else 64)
        softmax_d = m.alloc(4 * b * h * rounded)
        accumulated = m.alloc(4 * b * h * rounded * head)
        expanded = [m.alloc(b * s * h * d * 2) for _ in range(2)] if kv != h else []
        m.release(*reversed(expanded), accumulated, softmax_d)
        return [(0, dq), (1, dk), (2, dv)]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        b, h, s, d = inputs[0].shape
        return 4.0 * b * h * s * inputs[1].shape[2] * d / (2 if attrs.get("causal", True) else 1)
