"""Says when autograd's nodes die. Some hold tensors of their own: functions written in Python, as attributes of their
context.

A node lives while one of its results lives, or a node that reads one. Nodes in C++ die one after the other, each before
those that it reads, of which the last dies first (torch/csrc/autograd/function.cpp, deleteNode). A node in Python dies
as soon as nothing reads its result, and those that it reads die within its own deallocation. Where CPython finds too
many of them within each other, it puts off the rest (Include/cpython/object.h, trashcan).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.operators import KINDS

# Number of nodes in Python on a path from the loss from which on CPython puts some off until the loss itself is gone
# (PyTrash_UNWIND_LEVEL).
NESTED = 49
# Number of nodes within each other where they hold tensors. Of the last one, only the tensors are put off. Seen in
# recordings, not read in the source.
MOST = 46
PYTHON_FUNCTIONS = ("linear4bit", "linear8bit", "flash_attn", "flash_attn_varlen", "put_rows", "python_gelu")


@lru_cache(maxsize=256)
def holds_tensors(graph: LayerGraph) -> bool:
    """True if a node of the graph holds tensors of its own: one to which a Python function attached them, or that of a
    leaf made in the graph.
    """
    return any(
        op.kind == "new_leaf" or (op.requires_grad and KINDS[op.kind].attached(op.inputs, op.attrs))
        for op in graph.operators
    )


class Nodes:
    """The nodes of a graph, with values and storages as the machine numbers them.

    `tensors`: true if results keep their nodes alive until `drop`; otherwise only `end` releases nodes.
    """

    def __init__(self, tensors: bool) -> None:
        self.tensors = tensors
        self.producer: dict[int, int] = {}  # value → node
        self.of_storage: dict[int, list[int]] = {}  # storage → nodes with a living result there
        self.references: list[int] = []  # by node, like the three below
        self.edges: list[list[int]] = []
        self.held: list[list[int]] = []
        self.in_python: list[bool] = []
        self.depth = 0
        self.released: list[int] = []
        self.put_off: list[tuple[int, bool]] = []  # (node, true if only the tensors it holds are put off)

    def _add(self, edges: list[int], held: list[int], in_python: bool) -> int:
        for edge in edges:
            self.references[edge] += 1
        self.references.append(0)
        self.edges.append(edges)
        self.held.append(held)
        self.in_python.append(in_python)
        return len(self.references) - 1

    def add(self, op: Operator, values: Sequence[int], storages: Sequence[int]) -> list[int]:
        """Adds the node of an operator that has run. Returns the storages that the node takes hold of. `values` and
        `storages` are by the layer graph's numbers.
        """
        if not op.requires_grad:
            return []
        held = [storages[s] for s in KINDS[op.kind].attached(op.inputs, op.attrs)]
        edges = [self.producer[values[spec.value]] for spec in op.inputs if values[spec.value] in self.producer]
        node = self._add(edges, held, op.kind in PYTHON_FUNCTIONS)
        for spec in op.outputs:
            if spec.requires_grad:
                self.producer[values[spec.value]] = node
                if self.tensors:
                    self.references[node] += 1
                    self.of_storage.setdefault(storages[spec.storage], []).append(node)
        return held

    def leaf(self, value: int) -> list[int]:
        """Adds the node of a tensor that was marked as requiring a gradient. Returns the list of the storages that its
        AccumulateGrad holds, for the caller to fill.
        """
        held: list[int] = []
        self.producer[value] = self._add([], held, False)
        return held

    def drop(self, storage: int) -> list[int]:
        """Ends the last name of a storage. Returns the storages that nodes release, in order."""
        self.released = []
        for node in reversed(self.of_storage.pop(storage, [])):
            self._let_go(node)
        return self.released

    def end(self, value: int) -> tuple[list[int], list[int]]:
        """Ends the loss, and the whole graph with it. Returns the storages that nodes release, in order: those before
        the loss's own, and those after it.
        """
        before: list[int] = []
        after: list[int] = []
        self._forget_unread(self.producer[value])
        self.released = before
        self._die(self.producer[value])
        self.released = after
        self.depth = 1
        while self.put_off:
            batch, self.put_off = self.put_off, []
            for node, only_held in reversed(batch):
                if only_held:
                    after += self.held[node]
                else:
                    self._die(node)
        return before, after

    def _forget_unread(self, root: int) -> None:
        """Removes the references of nodes whose results nothing read: they died long ago, with their results."""
        for node in reversed(range(len(self.references))):
            if self.references[node] == 0 and node != root:
                for edge in self.edges[node]:
                    self.references[edge] -= 1

    def _let_go(self, node: int) -> None:
        self.references[node] -= 1
        if self.references[node] == 0:
            self._die(node)

    def _die(self, node: int) -> None:
        if self.in_python[node]:
            if self.depth >= MOST:
                self.put_off.append((node, False))
                return
            self.depth += 1
            if self.depth >= MOST and self.held[node]:
                self.put_off.append((node, True))
            else:
                self.released += self.held[node]
            for edge in self.edges[node]:
                self._let_go(edge)
            self.depth -= 1
            return
        stack = [node]
        while stack:
            node = stack.pop()
            self.released += self.held[node]
            for edge in self.edges[node]:
                if self.in_python[edge]:
                    self._let_go(edge)
                    continue
                self.references[edge] -= 1
                if self.references[edge] == 0:
                    stack.append(edge)
