"""Frozen 4-bit weights with a scale for each group of input features, as GPTQ and AWQ checkpoints have them.
Approximate: read, not recorded.

What is read: GPTQModel's torch kernel, which its Triton one takes in training too
(gptqmodel/nn_modules/qlinear/torch.py, __init__.py dequantize_weight, without torch.compile), and AutoAWQ's
WQLinearMMFunction (awq/modules/linear/gemm.py; GPTQModel's gemm_awq.py is the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memsim.cost.work import Work
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine

PACKED = 8  # weights in an int32
SPLITS = 8  # partial sums of AutoAWQ's fused kernel, along the input features (split_k_iters)
DEQUANTIZING = 4.5  # bytes moved for each weight: half a byte read, fp16 written and read
CASTING = 4  # and for each element that is cast from one 16-bit dtype to the other: read and written
FUSED_BELOW = 1024  # rows of x from which AutoAWQ dequantizes instead (FP16_MATMUL_HEURISTIC_CONDITION)


def packed_sizes(kind: str, shape: tuple[int, ...], group: int) -> list[int]:
    """Bytes of the buffers of a weight [out, in], in order: qweight and qzeros in int32, scales in fp16, and for gptq
    g_idx, the group of each feature.
    """
    out, inner = shape
    groups = inner // group
    return [
        4 * inner * out // PACKED,
        4 * groups * (out // PACKED),
        2 * groups * out,
        *([4 * inner] if kind == "gptq" else []),
    ]


class Dequantize(Kind):
    """dequantize_weight of a weight [out, in] → [in, out] in fp16, operator by operator; attrs: group."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        out, inner = inputs[0].shape
        return (Inferred((inner, out), contiguous((inner, out)), "fp16"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        out, inner = inputs[0].shape
        zeros = self._unpack(m, inner // int(str(attrs["group"])) * out)
        weight = self._unpack(m, inner * out)
        scales = self._gather(m, inner, 2 * inner * out)
        gathered = self._gather(m, inner, inner * out)
        centred = m.alloc(inner * out)
        m.release(gathered)
        into.append(m.alloc(outputs[0].nbytes))
        m.release(scales, centred, zeros, weight)

    def _unpack(self, m: Machine, count: int) -> int:
        """Shifts in int32, to int8, and the low four bits of that."""
        shifted = m.alloc(4 * count)
        narrow = m.alloc(count)
        m.release(shifted)
        bits = m.alloc(count)
        m.release(narrow)
        return bits

    def _gather(self, m: Machine, inner: int, nbytes: int) -> int:
        """x[g_idx.long()]."""
        index = m.alloc(8 * inner)
        result = m.alloc(nbytes)
        m.release(index)
        return result


class LinearAwq(Kind):
    """WQLinearMMFunction of x [..., in] in fp16, weight [out, in], bias [out] → [..., out]; keeps x.

    Few rows are multiplied by packed weights; for more, and in backward, the weight is dequantized. attrs: autocast,
    the dtype that it casts to.
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (*x.shape[:-1], weight.shape[0])
        return (Inferred(shape, like(shape), x.dtype if is_fused(inputs) else str(attrs["autocast"])),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def in_python(self, attrs: Attrs) -> bool:
        return True

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x, weight = inputs[:2]
        nbytes = outputs[0].nbytes
        if is_fused(inputs):
            parts = m.alloc(SPLITS * nbytes)
            result = m.alloc(nbytes)
            m.release(parts)
        else:
            dequantized = m.alloc(2 * weight.elements)
            casts = [m.alloc(2 * spec.elements) for spec in (weight, x)] if attrs["autocast"] != x.dtype else []
            result = m.alloc(nbytes)
            m.workspace()
            m.release(*reversed(casts), dequantized)
        if len(inputs) == 3:
            biased = m.alloc(nbytes)
            m.release(result)
            result = biased
        into.append(result)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight = inputs[:2]
        item = ITEMSIZE[grads[0].dtype]
        weights = m.alloc(2 * weight.elements)
        if grads[0].dtype != "fp16":
            cast = m.alloc(item * weight.elements)
            m.release(weights)
            weights = cast
        repeated = m.alloc(item * weight.elements * x.shape[0])
        of_x = m.grad(x.shape, like(x.shape), grads[0].dtype)
        m.workspace()
        m.release(repeated, weights)
        return [(0, of_x)]

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[1]

    def work(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
        """A product in the dtype of its result: fp16 where the kernel multiplies by packed weights, else what autocast
        casts x and the dequantized weight to.
        """
        x, weight = inputs[:2]
        out = outputs[0]
        if is_fused(inputs):
            moved = x.nbytes + weight.elements / 2 + (2 * SPLITS + 1) * out.nbytes  # sums written, and read
        else:
            cast = CASTING * (x.elements + weight.elements) if attrs["autocast"] != x.dtype else 0
            moved = x.nbytes + DEQUANTIZING * weight.elements + cast + out.nbytes
        return Work(self.unit, out.dtype, self.flops(inputs, outputs, attrs), moved)

    def backward_work(self, inputs: Specs, outputs: Specs, attrs: Attrs, saved: Sequence[int]) -> Work:
        """The gradient of x, for which the weight is dequantized again, cast to the gradient's dtype, and repeated for
        each sequence.
        """
        x, weight = inputs[:2]
        out = outputs[0]
        cast = CASTING * weight.elements if out.dtype != "fp16" else 0
        repeated = 2 * ITEMSIZE[out.dtype] * weight.elements * x.shape[0]  # written, and read
        moved = out.nbytes + DEQUANTIZING * weight.elements + cast + repeated + ITEMSIZE[out.dtype] * x.elements
        return Work(self.unit, out.dtype, self.backward_flops(inputs, outputs, attrs), moved)


def is_fused(inputs: Specs) -> bool:
    """Whether AutoAWQ multiplies by packed weights."""
    x = inputs[0]
    return x.shape[0] * x.shape[1] < FUSED_BELOW
