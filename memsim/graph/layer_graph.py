"""The layer graph: operators and the storages between them, for one distinct block of a model.

Nodes of the `networkx.DiGraph` are `Operator`s and storage numbers; an edge storage → operator is labelled "read" or
"save" (kept for backward), an edge operator → storage "write". Operators are numbered in the order in which the
framework executes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx as nx

from memsim.graph.dtypes import ITEMSIZE


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor in a block: a view (shape, strides in elements) of a storage. `value` is its identity for autograd."""

    value: int
    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    requires_grad: bool
    parameter: str | None = None  # its name within the block, for weights
    leaf: bool = False  # a gradient that reaches it is kept in .grad

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def elements_stored(self) -> int:
        """Number of elements without those that an expanded dimension repeats."""
        return (
            math.prod(size for size, stride in zip(self.shape, self.strides, strict=True) if stride)
            if 0 in self.strides
            else self.elements
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its elements (of the whole storage, for a tensor that is not a view)."""
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One operation that the framework executes."""

    index: int
    kind: str  # a key of memsim.operators.KINDS
    name: str  # module path and kind, such as "self_attn.q_proj.linear"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: Mapping[str, object]
    saved: tuple[int, ...]  # storages kept for backward, in the order in which backward releases them
    # storages whose last Python name dies right after this operator, in order
    drops: list[int] = field(default_factory=list)
    # those of `drops` that only the expression held: an exception in the operator releases them first
    operands: list[int] = field(default_factory=list)
    # storages that from here on only a graph holds that backward never reaches (not where a checkpoint keeps nothing)
    unkept: list[int] = field(default_factory=list)
    requires_grad: bool = field(init=False)  # True if backward has a node for it

    def __post_init__(self) -> None:
        # `dead`: its node dies with its results, as the loss does not depend on them
        needed = "dead" not in self.attrs and any(out.requires_grad and not out.leaf for out in self.outputs)
        object.__setattr__(self, "requires_grad", needed)


class LayerGraph(nx.DiGraph):  # type: ignore[misc]
    """A block: its operators in order, its inputs from other blocks, and its result."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name=name)
        self.operators: list[Operator] = []
        self.inputs: dict[str, TensorSpec] = {}
        self.parameters: dict[str, TensorSpec] = {}
        self.outputs: tuple[TensorSpec, ...] = ()
        # names of a layer's outputs; those beside the first are handed to all later layers
        self.results: tuple[str, ...] = ("hidden_states",)
        self.storage_bytes: list[int] = []  # by storage number
        self.values = 0
        # storages that autocast's cache holds until its context ends, in the order in which they were made
        self.cached: tuple[int, ...] = ()

    def add_storage(self, nbytes: int, label: str = "") -> int:
        """Makes a new storage of `nbytes` bytes and returns its number."""
        number = len(self.storage_bytes)
        self.storage_bytes.append(nbytes)
        self.add_node(number, bytes=nbytes, label=label)
        return number

    def add_operator(self, op: Operator) -> None:
        """Appends an operator with its edges."""
        self.operators.append(op)
        self.add_node(op)
        reads = {spec.storage for spec in op.inputs}
        for storage in reads:
            self.add_edge(storage, op, role="save" if storage in op.saved else "read")
        for spec in op.outputs:
            if spec.storage not in reads:
                self.add_edge(op, spec.storage, role="write")
