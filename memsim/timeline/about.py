"""The subject of a Timeline: a run or a recording, its device, its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memsim.cost.roofline import Rates


@dataclass(frozen=True)
class Cure:
    """An allocator setting that was tried on a run that is out of memory."""

    set: str  # as PYTORCH_ALLOC_CONF has it, the whole of it; empty: PyTorch's defaults
    peak_reserved: int  # bytes; where memory runs out all the same, until then
    fits: bool
    retries: int = 0  # how often the cache was given back

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {"set": self.set, "peak_reserved": self.peak_reserved, "fits": self.fits}


@dataclass(frozen=True)
class About:
    """The subject of a Timeline. Everything may be unknown, as for a recording that names nothing."""

    name: str = ""  # name of the run or the file: "qwen2.5-72b-lora"
    # facts that a reader needs first, in order: ("model", "qwen2.5-72b"), ("method", "LoRA rank 16") …
    facts: tuple[tuple[str, str], ...] = ()
    run: Mapping[str, object] | None = None  # the Run as plain data
    yaml: str = ""  # the Run as its file
    command: str = ""  # command line that repeats this Timeline
    device: str = ""  # "A100-80GB"
    device_memory: int | None = None  # bytes that the allocator can have
    allowed: int | None = None  # bytes of them that per_process_memory_fraction lets the allocator reserve; None: all
    counted: str = ""  # what those are of the device, in words, where they follow from its name
    context: int = 0  # bytes of the device that its context takes beside them
    allocator: str = ""  # settings, as PYTORCH_ALLOC_CONF has them
    parameters: int | None = None
    trainable_parameters: int | None = None
    layers: int | None = None
    loaded_event: int | None = None  # the last event of building the model; by default of the phase "load"
    first_event: int = 0  # of what the Timeline is about: events before it rebuild the state in which a recording began
    # names of the devices that the headline may suggest, and the bytes that the allocator can have of each
    devices: tuple[tuple[str, int], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of the stack that is simulated or was recorded
    tokens: int = 0  # in a step
    rates: Rates | None = None  # what times are estimated by
    note: str = ""  # what was found for it, in a line
    paged_state: int = 0  # bytes of optimizer state in managed memory of the host, which are in no figure of the device
    cures: tuple[Cure, ...] | None = None  # settings that were tried where memory runs out; None: nobody looked
