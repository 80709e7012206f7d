"""Writes the message of PyTorch's exception. The part on other processes, which only the driver knows, is left out, as
PyTorch does where the driver does not tell.
"""

from __future__ import annotations

from memsim.allocator.answer import OutOfMemory
from memsim.allocator.rules import release
from memsim.allocator.settings import Settings
from memsim.units import torch_size

_OLD_PAGE = "https://pytorch.org/docs/stable/notes/cuda.html#environment-variables"
_PAGE = "https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf"


def message(oom: OutOfMemory, settings: Settings | None = None, device: int = 0) -> str:
    """Returns the text of torch.OutOfMemoryError for this failure under these settings, on the device of this number,
    as in PyTorch 2.2 and later.
    """
    settings = Settings() if settings is None else settings
    if oom.rejected:
        return (
            "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
            "per_process_memory_fraction limit. "
            f"Requested size: {torch_size(oom.requested)}"
        )
    limit = settings.limit(oom.device_memory)
    allowed = "" if limit is None else f"{torch_size(limit)} allowed; "
    return (
        f"CUDA out of memory. Tried to allocate {torch_size(oom.tried)}. GPU {device} has a total capacity of "
        f"{torch_size(oom.device_memory)} "
        f"of which {torch_size(oom.device_free)} is free. {allowed}Of the allocated memory "
        f"{torch_size(oom.allocated)} is allocated by PyTorch, "
        f"and {torch_size(oom.reserved - oom.allocated)} is reserved by PyTorch but "
        f"unallocated.{_advice(oom, settings)}"
    )


def _advice(oom: OutOfMemory, settings: Settings) -> str:
    """Returns the message's advice. Since 2.15 it differs where expandable segments are on already."""
    version = release(settings.torch)
    if not settings.expandable_segments or version < (2, 15):
        variable = "PYTORCH_ALLOC_CONF" if settings.rules.names_unified_variable else "PYTORCH_CUDA_ALLOC_CONF"
        return (
            f" If reserved but unallocated memory is large try setting {variable}=expandable_segments:True to avoid "
            "fragmentation. "
            f" See documentation for Memory Management  ({_PAGE if version >= (2, 11) else _OLD_PAGE})"
        )
    reservation = settings.reservation(oom.device_memory)
    if oom.tried <= oom.device_memory and reservation < oom.tried:
        return (
            f" This allocation exceeds the expandable-segment reserve of {torch_size(reservation)} for this stream, "
            "and a single allocation cannot span "
            "expandable segments. Raise PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve or "
            "expandable_segments_reserve_by_class (or unset it) so that a "
            f"segment is at least {torch_size(oom.tried)}."
        )
    return (
        " expandable_segments is enabled. If instead the process is running out of virtual address space (VSZ), "
        "expandable segments may be over-reserving VA "
        "(each segment reserves ~9/8 of device memory, times the number of streams); reduce it via "
        "PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve / "
        "expandable_segments_reserve_by_class."
    )


def out_of_memory_message(oom: OutOfMemory | None, beside: int = 0) -> str | None:
    """The message as PyTorch words it, up to its advice; None where there was enough. `beside`: bytes that the device
    has beyond what the allocator could have.
    """
    if oom is None:
        return None
    return (
        f"CUDA out of memory. Tried to allocate {torch_size(oom.tried)}. GPU 0 has a total capacity of "
        f"{torch_size(oom.device_memory + beside)} "
        f"of which {torch_size(oom.device_free)} is free. Of the allocated memory {torch_size(oom.allocated)} is "
        "allocated by PyTorch, "
        f"and {torch_size(oom.reserved - oom.allocated)} is reserved by PyTorch but unallocated."
    )
