"""The settings of a Run that decide the schedule."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.cost.roofline import Rates
from memsim.schedule.optimizers.torch_optim import Optimizer


@dataclass(frozen=True)
class Plan:
    """The settings of a Run that decide the schedule."""

    steps: int
    accumulation: int
    clip_grad_norm: float | None
    optimizer: Optimizer
    rates: Rates | None = None  # rates from which the time is estimated
    in_backward: bool = False  # each parameter has an optimizer, which steps once the gradient is there
    grad_scaler: bool = False
