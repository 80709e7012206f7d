"""LLM.int8(): what is stored, what is kept for backward, and when the nodes that keep it die. Recordings in
traces/held-out hold it to the byte.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from memsim import Run, simulate
from memsim.errors import InputError, Unsupported
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.schedule.autograd.nodes import MOST, Nodes
from memsim.simulation import tape_of_run
from memsim.simulation.build import model_of
from memsim.tape import Action

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def loaded(**method: object) -> int:
    timeline = simulate(Run(model="llama3.1-8b", method={"kind": "qlora", **method}, batch={"sequence": 64}, steps=1))
    return int(timeline.whole.requested[timeline.spans[0].stop - 1])


def test_a_byte_a_weight_and_a_scale_a_row() -> None:
    rows = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
    linear = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    # NF4 without nested scales: half a byte, and four bytes for 64 weights
    assert loaded(quantization="int8") - loaded(double_quant=False) == pytest.approx(
        linear * (1 - 0.5 - 4 / 64) + 4 * rows, rel=1e-4
    )


def test_weights_count_as_weights() -> None:
    eight = Run(model=MODEL, method={"kind": "qlora", "quantization": "int8"})
    plain = Run(model=MODEL, method={"kind": "lora"})
    assert model_of(eight).count() == model_of(plain).count()


def test_a_checkpoint_does_not_let_go_of_inputs() -> None:
    """They are attributes of the context of MatMul8bitLt, which no hook of a checkpoint sees."""

    def kept(quantization: str) -> int:
        run = Run(
            model=MODEL,
            method={"kind": "qlora", "quantization": quantization},
            batch={"sequence": 512},
            checkpointing="full",
            steps=1,
        )
        step = simulate(run).steps[0]
        return step.peak_after_forward or 0

    # of a layer, in fp32 but for the attention's result: qkv, o, gate and up, down
    inputs = 512 * (128 * 4 + 128 * 2 + 128 * 4 + 256 * 4)
    assert kept("int8") - kept("nf4") > 5 * inputs


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            {"method": {"kind": "lora", "quantization": "int8"}},
            InputError,
            "method.quantization: int8 goes with method.kind qlora or qia3; with lora weights are",
        ),
        (
            {"method": {"kind": "qlora", "quantization": "int8", "double_quant": False}},
            InputError,
            "method.double_quant: false goes with quantization nf4",
        ),
        (
            {"method": {"kind": "qlora", "group_size": 64}},
            InputError,
            "method.group_size: 64 goes with quantization gptq or awq; nf4 has none",
        ),
        (
            {"method": {"kind": "qlora", "quantization": "int8"}, "stack": "hf-4.48"},
            Unsupported,
            "as PEFT 0.13.2 does not run with bitsandbytes 0.46.1",
        ),
    ],
)
def test_what_does_not_go_together(data: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        simulate(Run(**{"model": MODEL, **data}))


def chain(length: int) -> list[Operator]:
    """Operators of a graph in a row, each reading the one before: MatMul8bitLt of a storage of its own, number for
    number.
    """
    graph = LayerGraph()
    row = []
    for i in range(length):
        graph.add_storage(4)
        x = TensorSpec(i, i, (1, 1), (1, 1), "fp32", True)
        row.append(
            Operator(i, "linear8bit", f"{i}", (x, x), (TensorSpec(i + 1, i + 1, (1, 1), (1, 1), "fp32", True),), {}, ())
        )
    return row


@given(st.integers(1, 300))
def test_every_node_lets_go_once(length: int) -> None:
    nodes = Nodes(tensors=False)
    numbers = range(length + 1)
    for op in chain(length):
        assert nodes.add(op, numbers, numbers) == [op.index]
    before, after = nodes.end(length)
    assert sorted(before + after) == list(range(length))
    # the last first, as far as CPython nests
    assert before == list(range(length - 1, length - 1 - min(length, MOST - 1), -1))


@given(st.integers(1, 40))
def test_nodes_live_while_a_result_does(length: int) -> None:
    nodes = Nodes(tensors=True)
    numbers = range(length + 1)
    for op in chain(length):
        nodes.add(op, numbers, numbers)
    for storage in range(1, length):
        assert nodes.drop(storage) == []  # the next node reads it
    assert nodes.drop(length) == list(range(length - 1, -1, -1))


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_fails_in_bitsandbytes(kind: str) -> None:
    model = {**MODEL, "model_type": kind, "kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 16}
    model |= {"qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    model |= {"moe_intermediate_size": 32, "topk_group": 1, "topk_method": "greedy", "num_key_value_heads": 4}
    run = Run(model=model, method={"kind": "qlora", "quantization": "int8"})
    with pytest.raises(
        InputError,
        match=r"int8 fails in bitsandbytes, as self_attn.kv_b_proj gets a tensor of 4 dimensions: Only two or three "
        "dimensional matrices are supported for argument A; nf4 works",
    ):
        model_of(run)
    assert model_of(Run(model=model, method={"kind": "qlora"})).count()


@pytest.mark.parametrize(
    ("checkpointing", "recorded"),
    [
        ("none", [132096, 132096, 66048, 66048, 32768, 8519680, 65536]),
        ("selective", [132096, 132096, 65536, 8519680, 65536]),
    ],
)
def test_input_features_that_4_does_not_divide(checkpointing: str, recorded: list[int]) -> None:
    """matmul of fp32 copies of x and weight, which autocast lowers but where a TorchDispatchMode runs below it."""
    model = {**MODEL, "intermediate_size": 258, "num_hidden_layers": 2}
    method = {"kind": "qlora", "quantization": "int8"}
    run = Run(model=model, method=method, batch={"size": 2, "sequence": 64}, checkpointing=checkpointing, steps=1)
    tape = tape_of_run(run)
    there = (tape.action == Action.ALLOC) & (tape.layer == 0) & (tape.phase == tape.phases.index("0/forward"))
    there &= tape.operator == tape.operators.index("mlp.down_proj.linear8bit")
    made = tape.bytes[there].tolist()
    at = made.index(132096)
    assert made[at : at + len(recorded)] == recorded
    with pytest.raises(
        Unsupported, match=r"checkpointing.plan: selective with method.quantization int8 of mlp.down_proj"
    ):
        model_of(Run(model=model, method=method, checkpointing={"plan": [[1, "selective"], [1, "none"]]}))
