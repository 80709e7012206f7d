"""torch.amp.GradScaler: the loss is multiplied by a scale, and gradients are divided by it before they are used
(torch/amp/grad_scaler.py).

Every tensor it makes has one element. Gradients are unscaled in place, so their number does not matter. A step that
finds an infinity is skipped. Here none does, as in the recordings, whose values are zeros.
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
    """A scaler. It does nothing where it is not `enabled`."""

    machine: Machine
    enabled: bool
    made: bool = False  # the scale and the tracker of its growth are there, from the first use on
    found_inf: int | None = None  # its storage, from the unscaling of gradients to update()

    def scale(self, loss: TensorSpec) -> int | None:
        """Runs scaler.scale(loss). Returns the storage of the scaled loss, None where the scaler is off."""
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
        """Runs scaler.unscale_(optimizer): the scale's reciprocal in fp64, and the check for infinities."""
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
        """Runs _unscale_grads_, and the end of its caller. Kernels get copies of the reciprocal and of the check; the
        copy of the check stays.
        """
        m = self.machine
        master = m.alloc(FLOAT, SCRATCH)
        self.found_inf = m.alloc(FLOAT, SCRATCH)
        m.scratch(FLOAT)
        m.release(inverse, master)

    @contextmanager
    def step(self, fused: bool) -> Iterator[None]:
        """Runs scaler.step(optimizer), with the optimizer's own step inside, and scaler.update(). A fused optimizer
        gets the scale and the check.
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
