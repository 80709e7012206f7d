"""The share of a device's data sheet that training code reaches: the defaults of the time estimate (cost/roofline.py).

A Run may set its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """The shares of the data sheet's rates that are reached, and the cost of a launch."""

    matmul: float = 0.7  # share of the dense rate that large matrix products reach
    # Share of the dense rate that fused attention reaches (Dao 2023, FlashAttention-2, figures 5 and 6: 50 to 73 %
    # forward on an A100, less backward).
    attention: float = 0.5
    memory: float = 0.7  # share of the bandwidth of the device's memory
    pcie: float = 0.8  # share of the bandwidth to the host
    launch: float = 5e-6  # seconds that the smallest kernel takes

    def as_settings(self) -> str:
        """Returns the efficiencies as --set gives them to a Run."""
        parts = [f"{name}: {getattr(self, name):.3g}" for name in ("matmul", "attention", "memory", "pcie")]
        return f"--set 'efficiency={{{', '.join(parts)}, launch_us: {1e6 * self.launch:.3g}}}'"
