"""Operators that make tensors out of nothing, or of integers, and are never differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import broadcast, contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class Create(Kind):
    """arange, full, zeros, pad …: a tensor of `shape` and `dtype`."""

    differentiable = False
    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape: tuple[int, ...] = attrs["shape"]  # type: ignore[assignment]
        return (Inferred(shape, contiguous(shape), str(attrs["dtype"])),)


class CountTrue(Kind):
    """x.sum() of a bool tensor of `count` elements, that a cast to int64 comes before: one int64."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred((), (), "int64"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        count = inputs[0].elements
        into.append(m.alloc(outputs[0].nbytes))
        cast = m.alloc(8 * count)
        m.reduction_scratch((count,), (1,), (0,), "int64", accumulate=8)
        m.release(cast)


class Compare(Kind):
    """a != b and the like: a bool tensor."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = inputs[0].shape
        for other in inputs[1:]:
            shape = broadcast(shape, other.shape)
        return (Inferred(shape, like(shape), "bool"),)


class CumulativeSum(Kind):
    """x.cumsum(-1): fp32 of an fp32 tensor, else int64, with the scratch memory of CUB's scan where x is one row."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = inputs[0].shape
        return (Inferred(shape, contiguous(shape), "fp32" if inputs[0].dtype == "fp32" else "int64"),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        (x,) = inputs
        into.append(m.alloc(outputs[0].nbytes))
        cast = m.alloc(outputs[0].nbytes) if x.dtype != outputs[0].dtype else None
        m.scan_scratch(x.shape, ITEMSIZE[outputs[0].dtype])
        if cast is not None:
            m.release(cast)


class Tril(Kind):
    """x.tril() of a mask."""

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype),)


class BiasOfMask(Kind):
    """A boolean mask as zeros and minus infinity of `dtype` (attention.cpp, convert_boolean_attn_mask_): torch.where
    with two scalars.
    """

    differentiable = False

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        mask = inputs[0]
        return (Inferred(mask.shape, like(mask.shape, (mask.shape, mask.strides)), str(attrs["dtype"])),)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        item = ITEMSIZE[outputs[0].dtype]
        zero, minimum = m.alloc(item), m.alloc(item)
        into.append(m.alloc(outputs[0].nbytes))
        m.release(minimum, zero)
