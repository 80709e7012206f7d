"""What of a Run decides the schedule."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.cost.roofline import Rates
from memsim.schedule.optimizers.torch_optim import Optimizer


@dataclass(frozen=True)
class Plan:
    """What of a Run decides the schedule."""

    steps: int
    accumulation: int
    clip_grad_norm: float | None
    optimizer: Optimizer
    rates: Rates | None = None  # what estimates the time
    in_backward: bool = False  # an optimizer for each parameter, which steps once its gradient is there
    grad_scaler: bool = False
