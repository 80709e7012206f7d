"""Bloom's GeLU, a function written in Python (transformers/models/bloom/modeling_bloom.py, GeLUFunction): both passes
are made of pointwise operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.layout import like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs, pointwise

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class PythonGelu(Kind):
    """x · 0.5 · (1 + tanh(0.79788456 · x · (1 + 0.044715 · x · x))); keeps x."""

    flops_per_element = 8.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return pointwise(inputs)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def in_python(self, attrs: Attrs) -> bool:
        return True

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        size = outputs[0].nbytes
        half = m.alloc(size, m.scratch_category)
        eight = self._tanh(m, size)
        into.append(m.alloc(size))
        m.release(half, eight)

    def _tanh(self, m: Machine, size: int) -> int:
        """1 + tanh(…)."""
        inner = self._inner(m, size)
        tanh = m.alloc(size, m.scratch_category)
        m.release(inner)
        result = m.alloc(size, m.scratch_category)
        m.release(tanh)
        return result

    def _inner(self, m: Machine, size: int) -> int:
        """0.79788456 · x · (1 + 0.044715 · x · x)."""
        first, second = m.alloc(size, m.scratch_category), m.alloc(size, m.scratch_category)
        third = m.alloc(size, m.scratch_category)
        m.release(second)
        fourth = m.alloc(size, m.scratch_category)
        m.release(third)
        result = m.alloc(size, m.scratch_category)
        m.release(first, fourth)
        return result

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        size, scratch = inputs[0].nbytes, m.scratch_category
        inner = self._inner(m, size)
        tanh_out = m.alloc(size, scratch)
        m.release(inner)
        half = m.alloc(size, scratch)  # 0.5 · x
        square = m.alloc(size, scratch)
        complement = m.alloc(size, scratch)  # 1 - tanh²
        m.release(square)
        first = m.alloc(size, scratch)
        second = m.alloc(size, scratch)
        m.release(first)
        slope = m.alloc(size, scratch)  # 0.79788456 + 0.1070322243 · x · x
        m.release(second)
        product = m.alloc(size, scratch)
        m.release(complement, slope)
        left = m.alloc(size, scratch)
        m.release(half, product)
        one = m.alloc(size, scratch)
        right = m.alloc(size, scratch)
        m.release(one)
        ff = m.alloc(size, scratch)
        m.release(left, right)
        x = inputs[0]
        result = m.grad(x.shape, like(x.shape, (x.shape, x.strides)), x.dtype)
        m.release(tanh_out, ff)
        return [(0, result)]
