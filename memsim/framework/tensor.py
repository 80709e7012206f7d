"""A Python name's hold on a tensor: what makes lifetimes in the graph those of the framework's own code."""

from __future__ import annotations

from typing import Protocol

from memsim.graph.layer_graph import TensorSpec


class Holder(Protocol):
    """An object that is informed when names of a storage come and go."""

    names: dict[int, int]  # number of names of each storage

    def let_go(self, storage: int) -> None:
        """Notes that the storage has one name fewer."""


class Tensor:
    """A Python name's hold on a tensor of the graph under construction."""

    __slots__ = ("__weakref__", "builder", "spec")

    def __init__(self, builder: Holder, spec: TensorSpec) -> None:
        self.builder = builder
        self.spec = spec
        builder.names[spec.storage] = builder.names.get(spec.storage, 0) + 1

    def __del__(self) -> None:
        self.builder.let_go(self.spec.storage)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension, in elements."""
        return self.spec.shape

    @property
    def dtype(self) -> str:
        """The tensor's dtype, such as "bf16"."""
        return self.spec.dtype


class During:
    """Gives attributes of an object other values while a block runs, and restores the old ones afterwards."""

    __slots__ = ("before", "target", "values")

    def __init__(self, target: object, **values: object) -> None:
        self.target = target
        self.values = values
        self.before: dict[str, object] = {}

    def __enter__(self) -> None:
        for name, value in self.values.items():
            self.before[name] = getattr(self.target, name)
            setattr(self.target, name, value)

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.items():
            setattr(self.target, name, value)
