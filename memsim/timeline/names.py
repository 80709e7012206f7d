"""Categories and phases as people read them."""

from __future__ import annotations

from memsim.tape import Category

CATEGORY_NAMES = {
    Category.WEIGHTS: "weights",
    Category.ADAPTERS: "adapters",
    Category.GRADIENTS: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
    Category.ACTIVATIONS: "activations",
    Category.RECOMPUTATION: "recomputation",
    Category.LOGITS_AND_LOSS: "logits and loss",
    Category.SCRATCH: "scratch",
    Category.INPUTS: "inputs",
    Category.UNATTRIBUTED: "unattributed",
}
UNSPLIT = "unsplit remainder"  # bytes that blocks hold beyond those requested


def phase_words(phase: str) -> str:
    """Returns a phase's name as words: "load", "step 0 forward"."""
    step, _, kind = phase.partition("/")
    return f"step {step} {kind}" if kind else phase
