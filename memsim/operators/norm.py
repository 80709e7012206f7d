"""nn.LayerNorm (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph import is_contiguous
from memsim.operators.base import Attrs, Inferred, Kind, like
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.schedule.machine import Machine


class LayerNorm(Kind):
    """native_layer_norm over the last dimension of x [..., H], weight [H], bias [H]: keeps them, and a mean and an inverse deviation in fp32 for each row.

    The gradients of weight and bias need no scratch up to 64 Ki rows; beyond, PyTorch may reduce them in two stages, which is not modelled.
    """

    flops_per_element = 5.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        rows = (*x.shape[:-1], 1)
        statistic = Inferred(rows, like(rows), "fp32", differentiable=False)
        return (Inferred(x.shape, like(x.shape), x.dtype), statistic, statistic)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, *affine = inputs  # weight and bias, where the norm has them
        return (*(p.storage for p in affine[1:]), x.storage, *(p.storage for p in affine[:1]), outputs[1].storage, outputs[2].storage)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        x = inputs[0]
        copies = [] if is_contiguous(x.shape, x.strides) else [m.alloc(x.nbytes, m.scratch_category)]
        into += [m.alloc(out.nbytes) for out in outputs]
        m.release(*copies)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, whole = inputs[0], (grads[0], inputs[0])  # both are made contiguous
        copies = [m.alloc(x.nbytes, m.scratch_category) for part in whole if not is_contiguous(part.shape, part.strides)]
        made = [m.grad(spec.shape, like(spec.shape), spec.dtype, parameter=i > 0) if spec.requires_grad else None for i, spec in enumerate(inputs)]
        m.release(*reversed(copies))
        return [(i, grad) for i, grad in enumerate(made) if grad is not None]
