"""Tape → Answer: PyTorch's caching allocator. Numba inside, numpy outside."""

from __future__ import annotations

from memsim.allocator.answer import Answer, DriverAction, OutOfMemory
from memsim.allocator.message import message
from memsim.allocator.serving import allocate
from memsim.allocator.settings import Settings

__all__ = ["Answer", "DriverAction", "OutOfMemory", "Settings", "allocate", "message"]
