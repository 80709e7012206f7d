"""A Trace: a Tape from a file, with what the file recorded of the allocator that served it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import Answer
from memsim.tape import Tape


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order, and the recorded answers. The first `prefix` events rebuild the state in which the recording
    began.
    """

    tape: Tape
    source: str  # the file
    kind: str  # "snapshot", "recording", "operations", "totals"
    address: NDArray[np.int64]  # [n] recorded for ALLOC; -1 where it failed; meaningless where `known` is False
    known: NDArray[np.bool_]  # [n] events whose address was recorded
    reserved: NDArray[np.int64] | None = None  # [n] bytes reserved after each event, where they were recorded
    prefix: int = 0
    # addresses that the driver gave, in order
    segments: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    settings: str = ""  # as PYTORCH_ALLOC_CONF
    device_memory: int | None = None  # bytes, where the file says or implies it
    torch: str | None = None  # version, where the file says it
    answer: Answer | None = None  # where totals are all that was recorded: they are not to be replayed
    device: int | None = None  # which of them, where a snapshot has events of several
