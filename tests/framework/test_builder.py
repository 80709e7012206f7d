"""Lifetimes follow Python names, and survive a pass."""

from __future__ import annotations

import networkx as nx
import pytest

from memsim.errors import InputError, Unsupported
from memsim.framework.builder import Builder, module_call
from memsim.framework.rewriting import rewrite
from memsim.framework.tensor import Tensor
from memsim.graph.layer_graph import LayerGraph
from memsim.run.job import Run
from memsim.simulation.build import model_of

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


def dropped(graph: LayerGraph) -> list[tuple[str, list[int]]]:
    return [(op.kind, op.drops) for op in graph.operators]


def named(graph: LayerGraph) -> list[tuple[str, list[str], list[str]]]:
    """Operators with what they keep and what dies after them, by the name of what made it: passes number
    storages anew.
    """
    names = {spec.storage: name for name, spec in [*graph.inputs.items(), *graph.parameters.items()]}
    for op in graph.operators:
        for i, out in enumerate(op.outputs):
            names.setdefault(out.storage, f"{op.index}.{i}")
    return [(op.name, [names[s] for s in op.saved], [names[s] for s in op.drops]) for op in graph.operators]


def test_a_rebinding_drops_after_the_operator_that_made_the_new_value() -> None:
    b = Builder("block")
    x = b.input_tensor("x", (2, 3), "bf16")

    def forward(x: Tensor) -> Tensor:
        x = b.op("cast", x, dtype="fp32")
        x = b.op("square", x)
        return x

    graph = b.finish(forward(x))
    assert dropped(graph) == [("cast", []), ("square", [1])]


def test_temporaries_die_from_first_to_last() -> None:
    b = Builder("block")
    x = b.input_tensor("x", (2, 3), "bf16")
    graph = b.finish(b.op("add", b.op("neg", x), b.op("silu", x)))
    assert dropped(graph)[-1] == ("add", [1, 2])


def test_a_module_call_holds_its_arguments() -> None:
    b = Builder("block")
    x = b.input_tensor("x", (2, 3), "bf16")

    def plain(x: Tensor) -> Tensor:
        x = b.op("cast", x, dtype="fp32")
        return b.op("square", x)

    b.finish(module_call(plain)(b.op("neg", x)))
    assert dropped(b.graph) == [("neg", []), ("cast", []), ("square", [2, 1])]


def test_rewriting_nothing_changes_nothing() -> None:
    for graph in (model_of(Run.load("llama3.2-1b-full")).layer_graphs[0], model_of(Run.load("qwen2.5-7b-lora")).outer):
        again = rewrite(graph, dict(graph.inputs))
        assert named(again) == named(graph)


@pytest.mark.parametrize("name", ["llama3.2-1b-full", "qwen2.5-72b-lora", "qwen3-8b-lora"])
def test_the_graph_is_acyclic_and_its_edges_are_the_operators(name: str) -> None:
    model = model_of(Run.load(name))
    for graph in (*model.layer_graphs, model.outer):
        assert nx.is_directed_acyclic_graph(graph)
        for op in graph.operators:
            assert set(graph.predecessors(op)) == {spec.storage for spec in op.inputs}
            assert {s for s in graph.predecessors(op) if graph.edges[s, op]["role"] == "save"} == set(op.saved) & {
                spec.storage for spec in op.inputs
            }


def test_no_storage_is_let_go_twice() -> None:
    for name in ("llama3.2-1b-full", "qwen2.5-72b-lora", "qwen3-8b-lora", "mistral-7b-lora"):
        for graph in model_of(Run.load(name)).layer_graphs:
            drops = [s for op in graph.operators for s in op.drops]
            assert len(drops) == len(set(drops))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"method": {"kind": "lora", "targets": ["q_prj"]}},
            "method.targets: 'q_prj' matches no linear module; did you mean q_proj?",
        ),
    ],
)
def test_a_target_that_matches_nothing(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text.replace("?", r"\?")):
        model_of(Run(model="llama3.2-1b", **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fsdp": 8}, "fsdp: 8 is not supported yet"),
        (
            {"stack": "hf-4.48", "model": "qwen3-8b"},
            "model_type: qwen3 with stack hf-4.48 is not supported, as transformers 4.48 does not know it; llama",
        ),
        ({"stack": "hf-4.48", "sm": 100}, "sm: 100 is not supported with torch 2.6.0; 70 to 90 are"),
        (
            {"stack": "hf-4.48", "batch": {"sequence": 1}},
            "batch.sequence: 1 with stack hf-4.48 leaves no token to learn from",
        ),
        ({"model": {**LLAMA, "hidden_act": "relu6"}}, "model.hidden_act: relu6 is not supported yet"),
        (
            {"stack": "hf-4.48", "model": {**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}},
            "model.rope_scaling: rope_type dynamic is not supported yet with llama and this stack",
        ),
        (
            {
                "model": {
                    **LLAMA,
                    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
                    "max_position_embeddings": 64,
                },
                "batch": {"sequence": 65},
            },
            "batch.sequence: 65 with rope_type dynamic beyond model.max_position_embeddings 64, where it grows, is "
            "not supported yet",
        ),
        ({"sm": 70, "stack": "golden"}, "sm: 70 is not supported with torch 2.15.0; 75 and later are"),
    ],
)
def test_what_is_not_supported_says_so(changes: dict[str, object], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        model_of(Run(**{"model": "llama3.2-1b", **changes}))
