"""The layer graph's nodes and edges."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, strategies as st

from memsim.framework.builder import Builder
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import contiguous
from memsim.run.job import Run
from memsim.simulation.build import model_of

RUNS = ["llama3.2-1b-full", "qwen2.5-7b-lora", "qwen3-8b-lora", "mistral-7b-lora"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_contiguous_strides_are_numpys(shape: list[int]) -> None:
    expected = np.arange(math.prod(shape), dtype=np.int8).reshape(shape).strides
    assert contiguous(tuple(shape)) == expected


def test_a_view_writes_no_storage_of_its_own() -> None:
    b = Builder("block")
    x = b.input_tensor("x", (2, 3), "bf16")
    graph = b.finish(b.op("neg", b.op("view", x, shape=(6,))))
    view, neg = graph.operators
    assert view.outputs[0].storage == view.inputs[0].storage
    assert list(graph.successors(view)) == []
    assert list(graph.successors(neg)) == [neg.outputs[0].storage]
    assert graph.nodes[neg.outputs[0].storage]["bytes"] == 12


@pytest.mark.parametrize("name", RUNS)
def test_a_storage_is_written_by_one_operator_and_read_only_later(name: str) -> None:
    for graph in (*model_of(Run.load(name)).layer_graphs, model_of(Run.load(name)).outer):
        assert nx.is_directed_acyclic_graph(graph)
        given = {spec.storage for spec in (*graph.inputs.values(), *graph.parameters.values())}
        for storage in range(len(graph.storage_bytes)):
            writers = list(graph.predecessors(storage))
            assert len(writers) == (0 if storage in given else 1)
            assert all(reader.index > writer.index for writer in writers for reader in graph.successors(storage))


@pytest.mark.parametrize("name", RUNS)
def test_what_an_operator_writes_and_saves(name: str) -> None:
    for graph in model_of(Run.load(name)).layer_graphs:
        for op in graph.operators:
            reads = {spec.storage for spec in op.inputs}
            assert set(graph.successors(op)) == {spec.storage for spec in op.outputs} - reads
            assert set(op.saved) <= reads | {spec.storage for spec in op.outputs}
            for spec in op.outputs:
                if spec.storage not in reads:
                    assert graph.storage_bytes[spec.storage] == math.prod(spec.shape) * ITEMSIZE[spec.dtype]


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_read_after_its_last_name_died(name: str) -> None:
    for graph in model_of(Run.load(name)).layer_graphs:
        dead: set[int] = set()
        for op in graph.operators:
            assert not dead & {spec.storage for spec in op.inputs}
            dead.update(op.drops)
        assert not dead & {spec.storage for spec in graph.outputs}
