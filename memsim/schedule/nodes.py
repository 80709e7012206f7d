"""When autograd's nodes die, for some hold tensors of their own: those of functions written in Python, as attributes of their context.

A node lives while one of its results, or a node that reads one, does. It dies before those that it reads, of which the last dies first
(torch/csrc/autograd/function.cpp, deleteNode).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from memsim.graph import LayerGraph, Operator
from memsim.operators import KINDS


@lru_cache(maxsize=256)
def holds_tensors(graph: LayerGraph) -> bool:
    """Whether a node of the graph holds tensors of its own."""
    return any(KINDS[op.kind].attached(op.inputs, op.attrs) for op in graph.operators if op.requires_grad)


class Nodes:
    """The nodes of a graph, with values and storages as the machine numbers them.

    `tensors`: whether results keep their nodes alive until `drop`; else nothing but `end` lets go of them.
    """

    def __init__(self, tensors: bool) -> None:
        self.tensors = tensors
        self.producer: dict[int, int] = {}  # value → node
        self.of_storage: dict[int, list[int]] = {}  # storage → nodes with a living result there
        self.references: list[int] = []  # by node, like the two below
        self.edges: list[list[int]] = []
        self.held: list[list[int]] = []

    def add(self, op: Operator, values: Sequence[int], storages: Sequence[int]) -> list[int]:
        """An operator has run: the storages that its node takes a hold of. `values` and `storages` are by the layer graph's numbers."""
        if not op.requires_grad:
            return []
        node = len(self.references)
        edges = [self.producer[values[spec.value]] for spec in op.inputs if values[spec.value] in self.producer]
        for edge in edges:
            self.references[edge] += 1
        results = [spec for spec in op.outputs if spec.requires_grad]
        for spec in results:
            self.producer[values[spec.value]] = node
            if self.tensors:
                self.of_storage.setdefault(storages[spec.storage], []).append(node)
        held = [storages[s] for s in KINDS[op.kind].attached(op.inputs, op.attrs)]
        self.references.append(len(results) if self.tensors else 0)
        self.edges.append(edges)
        self.held.append(held)
        return held

    def drop(self, storage: int) -> list[int]:
        """The last name of a storage dies: the storages that nodes let go of, in order."""
        released: list[int] = []
        for node in reversed(self.of_storage.pop(storage, [])):
            self.references[node] -= 1
            if self.references[node] == 0:
                released += self._die(node)
        return released

    def end(self, value: int) -> list[int]:
        """The loss goes, and the whole graph with it: the storages that nodes let go of, in order."""
        return self._die(self.producer[value]) if value in self.producer else []

    def _die(self, node: int) -> list[int]:
        released: list[int] = []
        stack = [node]
        while stack:
            node = stack.pop()
            released += self.held[node]
            for edge in self.edges[node]:
                self.references[edge] -= 1
                if self.references[edge] == 0:
                    stack.append(edge)
        return released
