"""What takes padding out of a batch, and puts it back: counting a mask, the places of what is true in it, rows put
where they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import contiguous
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class ReduceAll(Kind):
    """x.all(), x.max(), x.sum() of everything, in the dtype of x and without a gradient."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred((), (), inputs[0].dtype),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        count, dtype = inputs[0].elements, inputs[0].dtype
        into.append(m.alloc(outputs[0].nbytes))
        m.reduction_scratch((count,), (1,), (0,), dtype, accumulate=ITEMSIZE[dtype])


class AllLast(Kind):
    """x.all(dim=-1, keepdim=True) of a mask."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = (*inputs[0].shape[:-1], 1)
        return (Inferred(shape, contiguous(shape), inputs[0].dtype),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x = inputs[0]
        into.append(m.alloc(outputs[0].nbytes))
        m.reduction_scratch(x.shape, x.strides, (len(x.shape) - 1,), x.dtype, accumulate=1)


class CountRows(Kind):
    """mask.sum(dim=-1, dtype=int32) of bool [B, S], which a cast comes before: int32 [B]."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred(inputs[0].shape[:1], (1,), "int32"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        shape = inputs[0].shape
        into.append(m.alloc(outputs[0].nbytes))
        cast = m.alloc(4 * inputs[0].elements)
        m.reduction_scratch(shape, contiguous(shape), (1,), "int32")
        m.release(cast)


class Nonzero(Kind):
    """torch.nonzero(x) of as many elements as `count`, one index each: int64 [count] (ATen/native/cuda/Nonzero.cu)."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred((int(attrs["count"]),), (1,), "int64"),)  # type: ignore[call-overload]

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        n = inputs[0].elements
        count = m.alloc(4, m.scratch_category)
        m.scratch(m.platform.sum_bytes(n))
        into.append(m.alloc(outputs[0].nbytes))
        m.scratch(m.platform.select_bytes(n))
        m.release(count)


class PutRows(Kind):
    """IndexPutFirstAxis of flash_attn/bert_padding.py: rows [T, …] go to the places `indices` [T] in zeros of `rows`
    rows; backward gathers them.
    """

    gathers = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = (int(attrs["rows"]), *inputs[0].shape[1:])  # type: ignore[call-overload]
        return (Inferred(shape, contiguous(shape), inputs[0].dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[1].storage,)

    def in_python(self, attrs: Attrs) -> bool:
        return True

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]
