"""The grouped matrix product of a mixture of experts (ATen/native/cuda/GroupedBlas.cpp, GroupMM.cu;
transformers/integrations/moe.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.layout import contiguous
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class GroupedLinear(Kind):
    """x [S, in], rows sorted by expert, weight [E, out, in] ([E, in, out] with `stacked_in_first`), int32 offsets [E] →
    [S, out].

    Results have room for every row wherever it is routed, so only scratch depends on the routing. bf16 on compute
    capability 9.0 and 10.x takes one CUTLASS kernel for all experts, with a buffer of its arguments and a workspace.
    Otherwise there is a product, with the workspace of cuBLAS, for each of the `experts_hit`, the experts that have a
    row at all. `fallback` is transformers' own loop, for devices before 8.0: it keeps everything and makes both
    gradients, whoever asks.
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (x.shape[0], weight.shape[2] if attrs.get("stacked_in_first") else weight.shape[1])
        return (Inferred(shape, contiguous(shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, weight, offsets = inputs
        if attrs.get("fallback"):
            return (x.storage, weight.storage)
        kept_weight = (weight.storage,) if x.requires_grad else ()
        return (*kept_weight, offsets.storage, *((x.storage,) if weight.requires_grad else ()))

    def in_python(self, attrs: Attrs) -> bool:
        return bool(attrs.get("fallback"))

    def attached(self, inputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[2].storage,) if attrs.get("fallback") else ()

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x, weight = inputs[:2]
        into.append(m.alloc(outputs[0].nbytes))
        self._product(m, x.dtype, weight.shape[0], attrs, x.shape[0] // weight.shape[0], outputs[0].shape[1])

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight = inputs[:2]
        experts, out, into = weight.shape[0], outputs[0].shape[1], x.shape[1]
        of_x = of_weight = None
        if attrs.get("fallback"):
            of_x, of_weight = (
                m.grad(x.shape, contiguous(x.shape), x.dtype),
                m.grad(weight.shape, contiguous(weight.shape), weight.dtype, parameter=True),
            )
            self._product(m, x.dtype, experts, attrs, 0, 0)
            self._product(m, x.dtype, experts, attrs, 0, 0)
            return [(0, of_x), (1, of_weight)]
        if weight.requires_grad:
            of_weight = m.grad(weight.shape, contiguous(weight.shape), weight.dtype, view=True, parameter=True)
            self._product(m, x.dtype, experts, attrs, out, into)
        if x.requires_grad:
            of_x = m.grad(x.shape, contiguous(x.shape), x.dtype)
            self._product(m, x.dtype, experts, attrs, x.shape[0] // experts, into)
        return [*([(0, of_x)] if of_x else []), *([(1, of_weight)] if of_weight else [])]

    def _product(self, m: Machine, dtype: str, experts: int, attrs: Attrs, rows: int, columns: int) -> None:
        """The scratch of one grouped product; rows and columns are those of an expert's result."""
        if m.platform.grouped_kernel and dtype == "bf16":
            arguments = m.alloc(argument_bytes(experts))
            m.scratch(m.platform.grouped_workspace(rows, columns))
            m.release(arguments)
            return
        for _ in range(int(attrs["experts_hit"])):  # type: ignore[call-overload]
            m.workspace()

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[0].shape[1]


def argument_bytes(experts: int) -> int:
    """Of a CUTLASS grouped product (bf16bf16_grouped_gemm_impl): for each expert three pointers, their count rounded to
    pairs, the three sizes of its problem as int32, and three strides.
    """
    return (experts + experts % 2) * 3 * 8 + experts * 3 * 4 + experts * 3 * 8
