"""PYTORCH_CUDA_ALLOC_CONF, parsed."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.errors import InputError


@dataclass(frozen=True)
class Settings:
    """The allocator's settings."""

    @classmethod
    def parse(cls, text: str, torch: str = "2.15.0") -> Settings:
        """Reads a setting string. Raises InputError."""
        if text.strip():
            raise InputError(f"allocator: {text!r} is not modelled yet; leave it empty for PyTorch's default settings")
        return cls()
