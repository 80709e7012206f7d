"""Time: a roofline over the device's data sheet (Williams, Waterman and Patterson 2009, "Roofline").

An operator takes as long as the slowest of three: its floating-point operations at the rate of its dtype, the bytes
that it moves at the bandwidth of the device's memory, and the launch of its kernel. Rates are those of the data sheet
times an efficiency, which a Run may set, or which one measured step calibrates. Time is an estimate, whereas memory is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memsim.catalog import Device
from memsim.cost.efficiency import Efficiency
from memsim.cost.work import Work

VECTOR = "fp32"  # the rate of arithmetic outside of matrix products


@dataclass(frozen=True)
class Rates:
    """A device, the share of it that is reached, and the kind of fp32 products."""

    device: Device
    efficiency: Efficiency = Efficiency()
    tf32: bool = False

    def peak(self, dtype: str) -> float:
        """Returns the data sheet's dense operations a second in a dtype, or those of fp32 where it has none for the
        dtype.
        """
        flops = self.device.flops
        return flops.get("tf32" if self.tf32 and dtype == "fp32" else dtype, flops[VECTOR])

    @property
    def half(self) -> float:
        """The data sheet's dense operations a second in 16 bits, which utilization is measured against whatever dtype
        products are in: bf16 and fp16 are as fast where there are both.
        """
        return self.peak("bf16" if "bf16" in self.device.flops else "fp16")

    @property
    def bandwidth(self) -> float:
        """The data sheet's bytes a second of the device's memory."""
        assert self.device.memory_bandwidth is not None  # known of every device whose kernels are modelled
        return self.device.memory_bandwidth

    def seconds(self, work: Work) -> float:
        """Returns the seconds of one execution."""
        reached = self.efficiency
        products = {"matmul": reached.matmul, "attention": reached.attention}
        rate = self.peak(work.dtype) * products[work.unit] if work.unit in products else self.device.flops[VECTOR]
        return max(reached.launch, work.flops / rate, work.bytes / (self.bandwidth * reached.memory))

    def copied(self, nbytes: float) -> float:
        """Seconds that so many bytes take between host and device."""
        assert self.device.pcie is not None  # as for its bandwidth
        return max(self.efficiency.launch, nbytes / (self.device.pcie.bandwidth * self.efficiency.pcie))

    def scaled(self, factor: float) -> Rates:
        """Returns the rates with every efficiency times a factor, and launches that take less by the same factor."""
        e = self.efficiency
        return replace(
            self,
            efficiency=Efficiency(
                e.matmul * factor, e.attention * factor, e.memory * factor, e.pcie * factor, e.launch / factor
            ),
        )
