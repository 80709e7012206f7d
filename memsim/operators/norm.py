"""nn.LayerNorm (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import is_contiguous, like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine


MANY = 64 * 1024  # rows
GRID = 32 * 1024  # thread blocks


class LayerNorm(Kind):
    """native_layer_norm over the last dimension of x [..., H], weight [H], bias [H]: keeps them, and a mean and an
    inverse deviation in fp32 for each row.

    The gradients of weight and bias need no scratch up to MANY rows; beyond, those of narrow rows are sums of partial
    ones, for as many rows as there are thread blocks (LaunchGammaBetaBackwardCUDAKernel).
    """

    flops_per_element = 5.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        rows = (*x.shape[:-1], 1)
        statistic = Inferred(rows, like(rows), "fp32", differentiable=False)
        return (Inferred(x.shape, like(x.shape), x.dtype), statistic, statistic)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, *affine = inputs  # weight and bias, where the norm has them
        return (
            *(p.storage for p in affine[1:]),
            x.storage,
            *(p.storage for p in affine[:1]),
            outputs[1].storage,
            outputs[2].storage,
        )

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x = inputs[0]
        copies = [] if is_contiguous(x.shape, x.strides) else [m.alloc(x.nbytes, m.scratch_category)]
        into += [m.alloc(out.nbytes) for out in outputs]
        m.release(*copies)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, whole = inputs[0], (grads[0], inputs[0])  # both are made contiguous
        copies = [
            m.alloc(x.nbytes, m.scratch_category) for part in whole if not is_contiguous(part.shape, part.strides)
        ]
        made = [
            m.grad(spec.shape, like(spec.shape), spec.dtype, parameter=i > 0) if spec.requires_grad else None
            for i, spec in enumerate(inputs)
        ]
        rows, width = x.elements // x.shape[-1], x.shape[-1]
        if rows > MANY and width // 32 < m.platform.processors // 2 and not m.platform.software.norms_sum_in_one_pass:
            made = [made[0], *self._summed(m, rows, width, made[1:])]
        m.release(*reversed(copies))
        return [(i, grad) for i, grad in enumerate(made) if grad is not None]

    def _summed(self, m: Machine, rows: int, width: int, made: list[Grad | None]) -> list[Grad | None]:
        """The gradients of weight and bias as sums over thread blocks, each of which takes 32 rows or more."""
        blocks = min(GRID // -(-width // 32), -(-rows // 32))
        partial = [
            m.alloc(blocks * width * ITEMSIZE[grad.dtype], m.scratch_category) for grad in made if grad is not None
        ]
        sums: list[Grad | None] = []
        for grad in made:
            sums.append(grad if grad is None else m.grad(grad.shape, grad.strides, grad.dtype, parameter=True))
            if grad is not None:
                m.reduction_scratch((blocks, width), (width, 1), (0,), grad.dtype)
                m.discard(grad)
        m.release(*reversed(partial))
        return sums
