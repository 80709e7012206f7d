"""The Run: what a person says about a training job, checked key by key."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.run.job import Run as Run
    from memsim.run.keys import Batch as Batch, EfficiencyKeys as EfficiencyKeys, Method as Method, Train as Train

_HOMES = {"Run": "job", "Batch": "keys", "EfficiencyKeys": "keys", "Method": "keys", "Train": "keys"}


def __getattr__(name: str) -> object:
    """Imports these names when they are first asked for: pydantic is slow to import, and not everyone makes a Run."""
    if name not in _HOMES:
        raise AttributeError(f"module 'memsim.run' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"memsim.run.{_HOMES[name]}"), name)
