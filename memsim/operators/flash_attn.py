"""The package flash-attn: the autograd functions of flash_attn_interface.py around csrc/flash_attn/flash_api.cpp
(version 2.8.3).

Heads lie as [B, S, H, D], or [T, H, D] where sequences without their padding follow one another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memsim.graph.layer_graph import TensorSpec
from memsim.graph.layout import like
from memsim.operators.attention import Attention, key_splits
from memsim.operators.base import Attrs, Inferred
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


def round_multiple(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def head_size_rounded(d: int) -> int:
    """Of a head's elements, in fp32 sums."""
    return round_multiple(d, 32 if d <= 128 else 64)


class FlashAttn(Attention):
    """FlashAttnFunc: q [B, S, H, D], k and v [B, S, K, D] → [B, S, H, D] laid out as q is; keeps them, the result, the
    log-sum-exp and a seed.

    Where heads are no multiple of 8, they come again, padded, as three more inputs; those are then what the kernel
    reads and what is kept.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        q = inputs[0]
        out = Inferred(q.shape, like(inputs[-3].shape, (inputs[-3].shape, inputs[-3].strides)), q.dtype)
        lse = self.log_sum_exp(inputs)
        return (
            out,
            Inferred(lse, like(lse), "fp32", differentiable=False),
            Inferred((2,), (1,), "int64", differentiable=False),
        )

    def log_sum_exp(self, inputs: Specs) -> tuple[int, ...]:
        """Its shape."""
        b, s, h, _ = inputs[0].shape
        return (b, h, s)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        out, lse, seed = outputs
        return (*(spec.storage for spec in inputs[-3:]), out.storage, lse.storage, seed.storage)

    def in_python(self, attrs: Attrs) -> bool:
        return True

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        q, k, _ = inputs[-3:]
        into += [m.alloc(q.nbytes), m.alloc(outputs[1].nbytes)]
        partial = [m.alloc(size) for size in self.partial(m, q, k, bool(attrs.get("p")))]
        into.append(m.alloc(outputs[2].nbytes))
        m.release(*reversed(partial))

    def partial(self, m: Machine, q: TensorSpec, k: TensorSpec, dropout: bool) -> list[int]:
        """Bytes of the log-sum-exps and of the results of each part, where the keys are split to fill the device
        (set_params_splitkv).
        """
        b, s, h, d = q.shape
        splits = 1 if dropout else key_splits(b * h, s, k.shape[1], d, m.platform.processors)
        return [4 * splits * b * h * s, 4 * splits * b * h * s * head_size_rounded(d)] if splits > 1 else []

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        q, k, v = inputs[-3:]
        made = [m.grad(x.shape, like(x.shape, (x.shape, x.strides)), x.dtype, view=True) for x in (q, k, v)]
        padded = m.alloc(q.nbytes) if len(inputs) > 3 else None
        heads, grouped, d = q.shape[-2], k.shape[-2], q.shape[-1]
        softmax_d, accumulated = (m.alloc(size) for size in self.accumulators(q, attrs))
        if grouped != heads:
            expanded = (*k.shape[:-2], grouped, heads // grouped, d)
            copies = [m.alloc(math.prod(expanded) * 2) for _ in range(2)]
            for _ in copies:  # at::sum_out
                m.reduction_scratch(expanded, like(expanded), (len(expanded) - 2,), k.dtype)
            m.release(*reversed(copies))
        m.release(accumulated, softmax_d)
        if padded is not None:
            m.at_return(padded)
        for grad, x in zip(made, inputs[:3], strict=True):  # dq[..., :D]
            grad.shape = x.shape
        return list(enumerate(made))

    def accumulators(self, q: TensorSpec, attrs: Attrs) -> tuple[int, int]:
        """Bytes of softmax_d and of dq_accum."""
        b, s, h, d = q.shape
        rounded = round_multiple(s, 128)
        return 4 * b * h * rounded, 4 * b * h * rounded * head_size_rounded(d)

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        b, s, h, d = inputs[0].shape
        return 4.0 * b * h * s * s * d / 2  # causal: half of the products


class FlashAttnVarlen(FlashAttn):
    """FlashAttnVarlenFunc: the same for [T, H, D], and `cu_seqlens` ahead of the heads that the kernel reads: inputs
    are q, k, v, cu_seqlens, and padded q, k, v where there are any. attrs: longest, the longest sequence's tokens;
    sequences, how many there are.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return super().infer(heads(inputs), attrs)

    def log_sum_exp(self, inputs: Specs) -> tuple[int, ...]:
        tokens, h, _ = inputs[0].shape
        return (h, tokens)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        *first, seed = super().saved(heads(inputs), outputs, attrs)
        lengths = inputs[3].storage
        return (*first, lengths, lengths, seed)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        super().forward(m, heads(inputs), outputs, attrs, into)

    def partial(self, m: Machine, q: TensorSpec, k: TensorSpec, dropout: bool) -> list[int]:
        return []  # only for decoding

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return super().backward(m, heads(inputs), outputs, attrs, grads)

    def accumulators(self, q: TensorSpec, attrs: Attrs) -> tuple[int, int]:
        tokens, h, d = q.shape
        rows = tokens + 128 * int(attrs["sequences"])  # type: ignore[call-overload]
        return 4 * h * rows, 4 * h * rows * head_size_rounded(d)

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        tokens, h, d = inputs[0].shape
        longest: int = attrs["longest"]  # type: ignore[assignment]
        return 4.0 * tokens * longest * h * d / 2


def heads(inputs: Specs) -> Specs:
    """The inputs without cu_seqlens."""
    return (*inputs[:3], *inputs[4:])
