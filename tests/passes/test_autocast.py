"""Autocast: which arguments are cast, once or each time, and when the cache is emptied."""

from __future__ import annotations

from dataclasses import replace

from memsim import Run
from memsim.api import simulate
from memsim.framework.rewriting import rewrite
from memsim.graph.layer_graph import LayerGraph
from memsim.simulation.build import model_of
from memsim.tape import AUTOCAST_CACHE, Action


def run(**changes: object) -> Run:
    return Run(model="llama3.2-1b", precision="amp-bf16", batch={"sequence": 64}, steps=1, **changes)


def test_a_weight_is_cast_once_and_what_it_multiplies_each_time() -> None:
    graph = model_of(run()).layer_graphs[0]
    casts = [op for op in graph.operators if op.kind == "cast"]
    weights = [op for op in casts if op.inputs[0].parameter]
    assert len(graph.cached) == len(weights) == 7
    assert {out.dtype for op in weights for out in op.outputs} == {"bf16"}
    assert sum(op.name == "self_attn.q_proj.cast" for op in casts) == 2  # the weight, and the hidden states
    assert not any(set(graph.cached) & set(op.drops) for op in graph.operators)


def test_frozen_weights_are_cast_at_every_use() -> None:
    graph = model_of(run(method={"kind": "lora"})).layer_graphs[0]
    assert {
        graph.operators[at].name.split(".")[-2]
        for at, op in enumerate(graph.operators)
        if any(o.storage in graph.cached for o in op.outputs)
    } == {
        "lora_A",
        "lora_B",
    }


def test_the_cache_is_emptied_once_the_loss_is_there() -> None:
    tape = simulate(run(checkpointing="full")).tape  # without, backward keeps the casts
    names = {number for number, name in enumerate(tape.operators) if name == AUTOCAST_CACHE}
    at = [event for event, operator in enumerate(tape.operator.tolist()) if operator in names]
    phases = [tape.phases[phase] for phase in tape.phase.tolist()]
    assert {phases[event] for event in at} == {"0/forward"}
    assert set(tape.action[at].tolist()) == {int(Action.FREE)}
    assert len(at) == 16 * 7 and phases[at[-1] + 1] == "0/backward"


def test_an_input_that_is_a_leaf_is_cast_once_and_kept() -> None:
    fields = {
        "model_type": "olmo2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 500,
    }
    model = model_of(Run(model=fields, precision="amp-bf16", method={"kind": "lora"}, checkpointing="full"))
    graph = model.layer_graphs[0]
    inputs = {**graph.inputs, "hidden_states": replace(graph.inputs["hidden_states"], leaf=True)}
    leaf = rewrite(graph, inputs)

    def casts(of: LayerGraph) -> int:
        return sum(op.kind == "cast" and op.inputs[0].value == of.inputs["hidden_states"].value for op in of.operators)

    assert (casts(graph), casts(leaf)) == (6, 1)  # q, k and v, each with its base and its adapter
    assert len(leaf.cached) == len(graph.cached) + 1
    assert not any(set(leaf.cached) & set(op.drops) for op in leaf.operators)


def test_before_sm_80_bfloat16_is_asked_for_once() -> None:
    probe = "autocast.is_bf16_supported"
    tape = simulate(run(sm=75, attention="eager", checkpointing="full").model_copy(update={"steps": 2})).tape
    assert tape.bytes[tape.operator == tape.operators.index(probe)].tolist() == [2, 2]
    assert probe not in simulate(run(attention="eager")).tape.operators
