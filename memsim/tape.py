"""The Tape: allocator requests in order, as a struct of arrays. The waist of the hourglass.

It comes from a simulated graph or from a recording, and nothing that reads it can tell which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# operator of the frees that empty it: their order is that of a hash table's entries, and no part of the prediction
AUTOCAST_CACHE = "autocast cache"


# module that runs once for each element of a Python set of names, whose order differs from process to process
SET_ORDER = "rotary_emb of each type"


# columns of `work`: seconds; those of recomputation among them; FLOPs of matrix products that the step needs
SECONDS, AGAIN, FLOPS = range(3)


class Action(IntEnum):
    """What a Tape's event asks of the allocator."""

    ALLOC = 0
    FREE = 1
    RECORD_STREAM = 2  # the storage is used on `stream` too: its block is free once that stream is done
    EMPTY_CACHE = 3
    COMPLETE = 4  # the events of `stream` that were recorded so far have completed (only in recordings with delays)


class Category(IntEnum):
    """Why a storage exists; what a person would call it."""

    WEIGHTS = 0
    ADAPTERS = 1
    GRADIENTS = 2
    OPTIMIZER_STATE = 3
    ACTIVATIONS = 4  # saved for backward, or passed from operator to operator
    RECOMPUTATION = 5
    LOGITS_AND_LOSS = 6
    SCRATCH = 7  # lives within one operator: workspaces, casts, temporaries
    INPUTS = 8  # token ids, positions, masks, rotary tables
    UNATTRIBUTED = 9  # a recording does not say


@dataclass(frozen=True, eq=False)
class Calls:
    """Where the requests of a recording came from: the stack of each, as far as it was recorded."""

    stack: NDArray[np.int32]  # [n] index into stacks, -1 where none was recorded
    stacks: tuple[tuple[int, ...], ...]  # each the numbers of its frames, the innermost first
    frames: tuple[str, ...]  # as people read them: "train.py:12 forward"

    def text(self, event: int) -> str:
        """The stack of an event, a frame a line; empty where none was recorded."""
        at = int(self.stack[event])
        return "" if at < 0 else "\n".join(self.frames[frame] for frame in self.stacks[at])


@dataclass(frozen=True, eq=False)
class Tape:
    """Requests of some training steps. All event arrays have length n, all storage arrays length s.

    A storage is one allocation: its ALLOC, its FREE (if it is freed) and its RECORD_STREAMs share its number.
    """

    action: NDArray[np.uint8]  # [n] Action
    storage: NDArray[np.int64]  # [n] 0 … s-1; -1 for EMPTY_CACHE and COMPLETE
    bytes: NDArray[np.int64]  # [n] bytes requested, for ALLOC and FREE alike; 0 otherwise
    stream: NDArray[np.int64]  # [n] 0 is the default stream; others compare as PyTorch's stream handles do
    phase: NDArray[np.int32]  # [n] index into phases
    operator: NDArray[np.int32]  # [n] index into operators
    layer: NDArray[np.int32]  # [n] decoder layer in which the event happens, -1 outside
    category: NDArray[np.uint8]  # [n] Category of the storage; UNATTRIBUTED where there is none
    phases: tuple[str, ...]  # "load", "0/forward", "0/backward", "0/optimizer", "1/forward" …
    operators: tuple[str, ...]  # names such as "self_attn.q_proj" or "cross_entropy"
    # [n, 3] estimated: SECONDS, AGAIN, FLOPS between the event before and this one; None where nobody knows
    work: NDArray[np.float64] | None = None
    calls: Calls | None = None  # only of recordings with stack frames

    def __len__(self) -> int:
        return len(self.action)

    @property
    def storages(self) -> int:
        """The number of storages s."""
        return int(self.storage.max()) + 1 if len(self.storage) else 0
