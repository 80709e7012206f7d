"""The settings of a Run that a model's code asks for while it executes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memsim.framework.builder import PLAIN, Technique
from memsim.stacks.known import GOLDEN
from memsim.stacks.software import Software


@dataclass(frozen=True)
class Settings:
    """The settings of a Run that a model's code asks for while it executes."""

    batch: int
    sequence: int
    dtype: str  # dtype of the weights
    attention: str
    sm: int = 80
    stack: Software = GOLDEN
    technique: Technique = PLAIN
    target: int = 0  # number of tokens that a decoder beside an encoder gets; 0: `sequence`
    # Share of each sequence that is padding. The batch then comes with an attention mask, and labels of its own.
    padding: float = 0.0
    loaded: str = ""  # dtype in which the model is made, where it is cast afterwards
    watched: bool = False  # layers run under a TorchDispatchMode, as selective checkpointing's
    routing: str | float = "balanced"  # how tokens go to experts (models/common/moe.py)
    other_order: bool = False  # takes the other order where that of a Python set decides

    @property
    def targets(self) -> int:
        """Number of tokens that a decoder beside an encoder gets."""
        return self.target or self.sequence

    @property
    def padded(self) -> bool:
        """True if the batch comes with an attention mask that is not all ones."""
        return self.padding > 0

    @property
    def real_tokens(self) -> int:
        """Number of tokens of each sequence that are not padding."""
        return self.sequence - math.ceil(self.padding * self.sequence)

    @property
    def created(self) -> str:
        """The dtype in which the model is made, and which its buffers keep."""
        return self.loaded or self.dtype
