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


class EfficientAttention(Kind):
    """The memory-efficient kernel (ATen/native/transformers/cuda/attention.cu, attention_backward.cu), which fp32 and masks need.

    Keeps q, k, v, the result, the log-sum-exp padded to 32 queries, and a seed and offset.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        q = inputs[0]
        b, h, s, d = q.shape
        lse = (b, h, _round(s, 32))
        scalar = Inferred((), (), "int64", differentiable=False)
        return (Inferred(q.shape, (s * h * d, d, h * d, 1), q.dtype), Inferred(lse, like(lse), "fp32", differentiable=False), scalar, scalar)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        q, k, v = inputs[:3]
        out, lse, seed, offset = outputs
        return (k.storage, q.storage, v.storage, lse.storage, out.storage, offset.storage, seed.storage)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        seed, offset = m.alloc(8), m.alloc(8)
        into += [m.alloc(outputs[0].nbytes), m.alloc(outputs[1].nbytes), seed, offset]

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        q, k, v = inputs[:3]
        b, h, s, d = q.shape
        dq, dk, dv = (m.grad(x.shape, (x.shape[2] * x.shape[1] * d, d, x.shape[1] * d, 1), x.dtype, view=True) for x in (q, k, v))
        expanded = [m.like(dq) for _ in range(2)] if k.shape[1] != h else []
        product = m.alloc(4 * q.elements)  # delta = (grad * out).sum(-1).transpose(1, 2).contiguous()
        summed = m.alloc(4 * b * h * s)
        delta = m.alloc(4 * b * h * s)
        m.release(summed, product)
        rows = 64 if d <= 64 else 128  # kBlockSizeI of the fp32 kernels that are compiled for sm80
        tiles = -(-s // rows) * -(-d // 64)
        workspace = m.alloc(b * h * tiles * (rows * 64 * 4 + 16))
        m.release(delta, workspace)
        m.discard(*reversed(expanded))
        return [(0, dq), (1, dk), (2, dv)]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        b, h, s, d = inputs[0].shape
        return 4.0 * b * h * s * inputs[1].shape[2] * d / (2 if attrs.get("causal", True) else 1)
