"""What of a Run a model's code asks for while it executes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memsim.framework.builder import PLAIN, Technique
from memsim.stacks.known import GOLDEN
from memsim.stacks.software import Software


@dataclass(frozen=True)
class Settings:
    """What of a Run the model's code asks for while it executes."""

    batch: int
    sequence: int
    dtype: str  # of the weights
    attention: str
    sm: int = 80
    stack: Software = GOLDEN
    technique: Technique = PLAIN
    target: int = 0  # tokens that a decoder beside an encoder gets; 0: as many as sequence
    # share of each sequence that is padding; the batch then comes with an attention mask, and labels of its own
    padding: float = 0.0
    loaded: str = ""  # dtype in which the model is made, where it is cast afterwards
    watched: bool = False  # layers run under a TorchDispatchMode, that of selective checkpointing
    routing: str | float = "balanced"  # of tokens to experts: see models/common/moe.py
    other_order: bool = False  # the other way round, where a Python set's order decides

    @property
    def targets(self) -> int:
        """Tokens that a decoder beside an encoder gets."""
        return self.target or self.sequence

    @property
    def padded(self) -> bool:
        """Whether the batch comes with an attention mask that is not all ones."""
        return self.padding > 0

    @property
    def real_tokens(self) -> int:
        """Of each sequence, those that are no padding."""
        return self.sequence - math.ceil(self.padding * self.sequence)

    @property
    def created(self) -> str:
        """dtype in which the model is made, and its buffers stay."""
        return self.loaded or self.dtype
