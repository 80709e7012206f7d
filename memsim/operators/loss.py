"""Negative log likelihood (aten/src/ATen/native/LossNLL.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.graph.layout import like
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Machine


class NllLoss(Kind):
    """nll_loss(log-probabilities [N, V], targets [N]) → a scalar, with the scalar total weight kept beside it."""

    gathers = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        return (Inferred((), (), inputs[0].dtype), Inferred((), (), inputs[0].dtype, differentiable=False))

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage, inputs[1].storage, outputs[1].storage)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, like(inputs[0].shape), inputs[0].dtype))]
