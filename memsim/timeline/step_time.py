"""The estimated time of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTime:
    """The estimated time of a training step, in seconds, and the figures that follow from it."""

    forward: float
    backward: float  # without recomputation
    recomputation: float
    optimizer: float
    tokens: int  # in a step
    # of the products that the step needs, forward and backward, without recomputation, however they are quantized
    flops: float
    peak: float  # of the device, in FLOP a second of 16 bits

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.recomputation + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second; 0 where the step takes no time."""
        return self.tokens / self.total if self.total else 0.0

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization (Chowdhery et al. 2022, PaLM, appendix B): what the step needs of what the device
        could do in its time in 16 bits. It follows from tokens a second, whatever the quantization.
        """
        return self.flops / (self.total * self.peak) if self.total else 0.0

    @property
    def overhead(self) -> float:
        """Time of recomputation, as a share of the step without it."""
        rest = self.total - self.recomputation
        return self.recomputation / rest if rest else 0.0

    def to_json(self) -> dict[str, float]:
        """Returns seconds, rates and ratios."""
        return {
            "step": self.total,
            "forward": self.forward,
            "backward": self.backward,
            "recomputation": self.recomputation,
            "optimizer": self.optimizer,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "recomputation_overhead": self.overhead,
        }
