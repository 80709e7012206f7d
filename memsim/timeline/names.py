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


RECORDED = "trace"  # the phase of a recording that names none
BEFORE = "before"  # that of what rebuilds the state in which it began


def phase_words(phase: str) -> str:
    """A phase's name as words: "load", "step 0 forward"; none for a recording's, which says nothing."""
    if phase in (RECORDED, BEFORE):
        return "" if phase == RECORDED else "before the recording"
    step, _, kind = phase.partition("/")
    return f"step {step} {kind}" if kind else phase
