"""Scaled dot-product attention: FlashAttention-2 as PyTorch builds it
(aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memsim.errors import InputError
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import TensorSpec
from memsim.graph.layout import contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.efficient_kernels import backward_workspace
from memsim.operators.elementwise import Edges, Grads, Specs
from memsim.stacks.software import Software

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine


def _round(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _head(d: int, stack: Software) -> int:
    """Head dimensions as the kernels pad them."""
    return _round(d, 32 if d <= 128 or stack.flash_pads_heads_to_32 else 64)


def _sequence_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of [B, H, S, D] that lies as [B, S, H, D]."""
    _, h, s, d = shape
    return (s * h * d, d, h * d, 1)


def _is_sequence_first(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether [B, H, S, D] is contiguous as [B, S, H, D]."""
    return all(
        size == 1 or stride == want for size, stride, want in zip(shape, strides, _sequence_first(shape), strict=True)
    )


def key_splits(heads: int, queries: int, keys: int, d: int, processors: int) -> int:
    """Into how many parts the forward kernel splits the keys to fill the device (set_params_splitkv,
    num_splits_heuristic); heads is B·H.
    """
    blocks = -(-keys // (256 if d <= 64 else 128 if d <= 128 else 64))
    rows, slots = heads * -(-queries // 64), 2 * processors
    if rows >= 0.8 * slots:
        return 1
    efficiency: dict[int, float] = {}
    for splits in range(1, min(128, slots, blocks) + 1):
        if splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1)):
            waves = rows * splits / slots
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values())
    return next(splits for splits, value in efficiency.items() if value >= 0.85 * best)


class Attention(Kind):
    """What both kernels compute."""

    unit = "attention"

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        b, h, s, d = inputs[0].shape
        products = 2.0 * b * h * s * inputs[1].shape[2] * (d + inputs[2].shape[-1])
        return products / (2 if attrs.get("causal", True) else 1)  # causal: half of them

    def backward_flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        """Five products where forward has two: the scores are computed again (Dao et al. 2022, FlashAttention, appendix
        B).
        """
        return 2.5 * self.flops(inputs, outputs, attrs)


class FlashAttention(Attention):
    """q [B, H, S, D], k and v [B, K, S, D] → [B, H, S, D] laid out as q is; keeps q, k, v, the result, the log-sum-exp
    and two seeds.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        q = inputs[0]
        b, h, s, _ = q.shape
        out = Inferred(q.shape, like(q.shape, (q.shape, q.strides)), q.dtype)
        lse = Inferred((b, h, s), like((b, h, s)), "fp32", differentiable=False)
        seeds = Inferred((2,), (1,), "int64", differentiable=False), Inferred((), (), "int64", differentiable=False)
        return (out, lse, *seeds)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        q, k, v = inputs
        out, lse, seed, unused = outputs
        return (k.storage, q.storage, v.storage, lse.storage, out.storage, seed.storage, unused.storage)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        b, h, s, d = inputs[0].shape
        into += [m.alloc(outputs[0].nbytes), m.alloc(outputs[1].nbytes)]
        splits = 1 if attrs.get("p") else key_splits(b * h, s, inputs[1].shape[2], d, m.platform.processors)
        partial = (
            [m.alloc(4 * splits * b * h * s), m.alloc(4 * splits * b * h * s * _head(d, m.platform.software))]
            if splits > 1
            else []
        )
        into += [m.alloc(0 if m.platform.software.attention_seeds_on_host else spec.nbytes) for spec in outputs[2:]]
        if (
            attrs.get("p") and not m.platform.software.attention_seeds_on_host
        ):  # the state that dropout starts from takes the place of the one that was made to be returned without
            before, into[2] = into[2], m.alloc(outputs[2].nbytes)
            m.release(before)
        m.release(*(reversed(partial) if m.platform.software.flash_partials_reversed else partial))

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        q, k, v = inputs
        b, h, s, d = q.shape
        kv = k.shape[1]
        whole = (grads[0], outputs[0])  # grad_out.contiguous() and out.contiguous(), both as [B, S, H, D]
        copies = [m.alloc(outputs[0].nbytes) for x in whole if not _is_sequence_first(x.shape, x.strides)]
        dq, dk, dv = (m.grad(x.shape, like(x.shape, (x.shape, x.strides)), x.dtype, view=True) for x in (q, k, v))
        rounded = _round(s, 128)
        softmax_d = m.alloc(4 * b * h * rounded)
        accumulated = m.alloc(4 * b * h * rounded * _head(d, m.platform.software))
        expanded = [m.alloc(b * s * h * d * 2) for _ in range(2)] if kv != h else []
        m.release(*reversed(expanded), accumulated, softmax_d, *reversed(copies))
        return [(0, dq), (1, dk), (2, dv)]


class EfficientAttention(Attention):
    """The memory-efficient kernel (ATen/native/transformers/cuda/attention.cu, attention_backward.cu), which fp32 and
    masks need.

    Keeps q, k, v, the result, the log-sum-exp padded to 32 queries, a seed and offset, and the bias [B, H, S, S], where
    there is one: the fourth input.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        q = inputs[0]
        b, h, s, _ = q.shape
        d = inputs[2].shape[-1]
        lse = (b, h, _round(s, 32) if any(spec.requires_grad for spec in inputs) else 0)  # should_compute_logsumexp
        shape = (0,) if attrs.get("p") else ()  # with dropout they are the host's
        scalar = Inferred(shape, like(shape), "int64", differentiable=False)
        return (
            Inferred((b, h, s, d), (s * h * d, d, h * d, 1), q.dtype),
            Inferred(lse, like(lse), "fp32", differentiable=False),
            scalar,
            scalar,
        )

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        q, k, v, *bias = inputs
        out, lse, seed, offset = outputs
        return (
            *(x.storage for x in bias),
            k.storage,
            q.storage,
            v.storage,
            lse.storage,
            out.storage,
            offset.storage,
            seed.storage,
        )

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        seed, offset = (
            m.alloc(0 if m.platform.software.efficient_attention_seeds_on_host else spec.nbytes) for spec in outputs[2:]
        )
        into += [m.alloc(outputs[0].nbytes), m.alloc(outputs[1].nbytes), seed, offset]
        # kNeedsOutputAccumulatorBuffer
        if max(inputs[0].shape[-1], inputs[2].shape[-1]) > 128 and inputs[0].dtype != "fp32":
            m.scratch(4 * outputs[0].elements)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        q, k, v = inputs[:3]
        b, h, s, d = q.shape
        padded = [m.alloc(size) for size in self._padded(m, *inputs[3:])]
        # grad_out.contiguous(), as [B, S, H, D]
        copies = [] if _is_sequence_first(grads[0].shape, grads[0].strides) else [m.alloc(outputs[0].nbytes)]
        dq, dk, dv = (m.grad(x.shape, _sequence_first(x.shape), x.dtype, view=True) for x in (q, k, v))
        expanded = [m.like(dq) for _ in range(2)] if k.shape[1] != h else []
        of_bias = [self._of_bias(m, bias) for bias in inputs[3:] if bias.requires_grad]
        delta = self._delta(m, outputs[0])
        half, dropout = q.dtype != "fp32", bool(attrs.get("p"))
        workspace = m.alloc(
            backward_workspace(
                b * h, (s, k.shape[2]), (d, v.shape[-1]), half, m.platform.sm, m.platform.large_shared_memory, dropout
            )
        )
        m.release(delta, workspace)
        m.discard(*reversed(expanded))
        m.release(*padded)
        m.release(*copies)
        return [(0, dq), (1, dk), (2, dv), *((3, grad) for grad in of_bias)]

    def _of_bias(self, m: Machine, bias: TensorSpec) -> Grad:
        """A gradient of rows that begin at multiples of 16 numbers, cut to the bias; where nothing is cut off, sums may
        go in place.
        """
        rows = (*bias.shape[:-1], _round(bias.shape[-1], 16))
        whole = m.grad(rows, contiguous(rows), bias.dtype)
        cut = m.view(whole, bias.shape, whole.strides)
        m.discard(whole)
        cut.view = rows != bias.shape
        return cut

    def _padded(self, m: Machine, *bias: TensorSpec) -> list[int]:
        """Bytes of a copy of the bias [B, H, S, S] whose rows are aligned, where its own are not: forward sees to that,
        but not a journey to the host.
        """
        aligned = 16 // ITEMSIZE[bias[0].dtype] if bias else 1
        if not bias or bias[0].strides[-2] % aligned == 0:
            return []
        if not m.platform.software.unaligned_bias_fails:
            *rest, width = bias[0].shape
            return [ITEMSIZE[bias[0].dtype] * math.prod(rest) * _round(width, aligned)]
        if bias[0].strides[-2] % 4 and not (bias[0].dtype == "fp32" and m.platform.sm < 80):
            raise InputError(
                f"checkpointing: offload of an attention mask with rows of {bias[0].shape[-1]} fails in torch "
                f"{m.platform.software.torch} "
                "(attn_bias is not correctly aligned); a multiple of 4 works"
            )
        return []

    def _delta(self, m: Machine, q: TensorSpec) -> int:
        """(grad * out).sum(-1) of fp32, made by three operators where the kernel does not compute it
        itself: [B, H, S].
        """
        b, h, s, _ = q.shape
        if q.dtype != "fp32":
            return m.alloc(4 * b * h * s)
        product = m.alloc(4 * q.elements)
        summed = m.alloc(4 * b * h * s)
        if h == 1 or s == 1:  # transposed it is contiguous already
            m.release(product)
            return summed
        delta = m.alloc(4 * b * h * s)
        m.release(summed, product)
        return delta
