"""torch.amp.GradScaler: the loss times a scale, gradients divided by it before they are used
(torch/amp/grad_scaler.py).

Everything it makes is one element. Gradients are unscaled in place, so their number does not matter. A step that finds
an infinity is skipped; here none does, as in the recordings, whose values are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import TensorSpec
from memsim.machine.storages import NO_LAYER, Machine
from memsim.tape import Category

STATE, SCRATCH, LOSS = int(Category.OPTIMIZER_STATE), int(Category.SCRATCH), int(Category.LOGITS_AND_LOSS)
FLOAT, DOUBLE = 4, 8  # bytes


@dataclass(eq=False)
class GradScaler:
    """A scaler, which does nothing where it is not `enabled`."""

    machine: Machine
    enabled: bool
    made: bool = False  # the scale and the tracker of its growth, at the first use
    found_inf: int | None = None  # storage; since gradients were unscaled, up to update()

    def scale(self, loss: TensorSpec) -> int | None:
        """scaler.scale(loss): the storage of the scaled loss, None where there is none."""
        if not self.enabled:
            return None
        m = self.machine
        m.at("scaler.scale")
        if not self.made:
            self.made = True
            m.alloc(FLOAT, STATE)
            m.alloc(FLOAT, STATE)
        scaled = m.alloc(ITEMSIZE[loss.dtype], LOSS)
        m.at("loss.backward")
        return scaled

    def unscale(self) -> None:
        """scaler.unscale_(optimizer): the scale's reciprocal in fp64, and whether an infinity was found."""
        if not self.enabled:
            return
        m = self.machine
        m.layer = NO_LAYER
        m.at("scaler.unscale_")
        double = m.alloc(DOUBLE, SCRATCH)
        reciprocal = m.alloc(DOUBLE, SCRATCH)
        m.release(double)
        inverse = m.alloc(FLOAT, SCRATCH)
        m.release(reciprocal)
        self._unscale_grads(inverse)

    def _unscale_grads(self, inverse: int) -> None:
        """_unscale_grads_, and its caller's end: kernels get copies of the reciprocal and of the check, whose copy
        stays.
        """
        m = self.machine
        master = m.alloc(FLOAT, SCRATCH)
        self.found_inf = m.alloc(FLOAT, SCRATCH)
        m.scratch(FLOAT)
        m.release(inverse, master)

    @contextmanager
    def step(self, fused: bool) -> Iterator[None]:
        """scaler.step(optimizer), the optimizer's own step inside, and scaler.update(). A fused optimizer gets the
        scale and the check.
        """
        if not self.enabled:
            yield
            return
        m = self.machine
        given: list[int] = []
        if not fused:
            if self.found_inf is None:
                self.unscale()
            yield
        else:
            m.layer = NO_LAYER
            m.at("scaler.step")
            unscaled = self.found_inf is not None
            if not unscaled:  # _check_inf_per_device
                self._unscale_grads(m.alloc(FLOAT, SCRATCH))
            found = m.alloc(FLOAT, SCRATCH)
            given = [found] if unscaled else [m.alloc(FLOAT, SCRATCH), found]
            yield
            m.layer = NO_LAYER
            m.at("scaler.step")
            m.release(*given)
        m.layer = NO_LAYER
        m.at("scaler.update")
        assert self.found_inf is not None
        m.release(self.found_inf)
        self.found_inf = None
