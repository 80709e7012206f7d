"""The device of a Run: the memory that its libraries ask for, and its rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.cost.efficiency import Efficiency
from memsim.cost.roofline import Rates
from memsim.machine.kernels import Platform, platform_for
from memsim.stacks.known import STACKS

if TYPE_CHECKING:
    from memsim.run.job import Run


def rates_of(run: Run) -> Rates:
    """What the time estimate goes by: the Run's device, or of NVIDIA's in the catalogue the one that is nearest in
    compute capability and memory.
    """
    from memsim.catalog import devices

    known = devices()
    device = known[run.device] if run.device is not None else None
    if device is None or device.sm is None:
        device = min(
            (d for d in known.values() if d.sm is not None),
            key=lambda d: (abs((d.sm or 0) - run.sm), abs(d.memory - run.device_bytes)),
        )
    e = run.efficiency
    return Rates(
        device, Efficiency(e.matmul, e.attention, e.memory, e.pcie, e.launch_us / 1e6), run.precision == "tf32"
    )


def platform_of(run: Run) -> Platform:
    """Returns the stack on the Run's device. The device has its own number of multiprocessors if it is of the catalogue
    and `sm` is not overridden.
    """
    from memsim.catalog import devices

    device = devices()[run.device] if run.device else None
    return platform_for(
        run.sm, device.processors if device is not None and device.sm == run.sm else None, STACKS[run.stack]
    )
