"""LoRA: which modules get adapters, their dtype, and what stays frozen."""

from __future__ import annotations

import pytest

from memsim.errors import InputError
from memsim.passes.lora_settings import Lora, matches
from memsim.run.job import Run
from memsim.simulation.build import model_of


@pytest.mark.parametrize(
    ("targets", "module", "expected"),
    [
        ("all-linear", "mlp.up_proj", True),
        ("all-linear", "lm_head", False),
        (["up_proj"], "mlp.up_proj", True),
        (["up_proj"], "mlp.backup_proj", False),
        (["mlp.up_proj"], "mlp.up_proj", True),
        (["q_proj", "v_proj"], "self_attn.k_proj", False),
    ],
)
def test_targets_match_as_peft_matches_them(targets: str | list[str], module: str, expected: bool) -> None:
    assert matches(Lora(8, targets), module) is expected


def adapted(**method: object):
    return model_of(Run(model="llama3.2-1b", method={"kind": "lora", **method}))


def test_adapters_are_fp32_over_frozen_bf16() -> None:
    model = adapted(rank=4, targets=["q_proj", "v_proj"])
    adapters = {p.name: p for p in model.layers[0] if p.adapter}
    assert list(adapters) == [f"self_attn.{m}.lora_{side}.weight" for m in ("q_proj", "v_proj") for side in "AB"]
    assert adapters["self_attn.q_proj.lora_A.weight"].shape == (4, 2048)
    assert adapters["self_attn.v_proj.lora_B.weight"].shape == (512, 4)
    assert {p.dtype for p in adapters.values()} == {"fp32"}
    assert {p.created_dtype for p in adapters.values()} == {"bf16"}
    rest = [p for _, p in model.in_order() if not p.adapter and not p.buffer]
    assert {(p.dtype, p.trainable) for p in rest} == {("bf16", False)}


@pytest.mark.parametrize("rank", [1, 8, 128])
def test_the_count_grows_with_the_rank(rank: int) -> None:
    assert adapted(rank=rank, targets=["o_proj"]).count(trainable=True) == 16 * rank * (2048 + 2048)


def test_only_targeted_modules_are_replaced() -> None:
    plain = model_of(Run(model="llama3.2-1b")).layer_graphs[0]
    graph = adapted(rank=4, targets=["q_proj"]).layer_graphs[0]
    linear = [op.name for op in graph.operators if op.kind == "linear"]
    before = [op.name for op in plain.operators if op.kind == "linear"]
    assert len(linear) == len(before) + 2
    assert [name for name in linear if ".lora_" not in name and "lora_" not in name] == before


def test_dropout_adds_one_operator_a_module() -> None:
    def dropouts(p: float) -> int:
        return sum(op.kind == "dropout" for op in adapted(rank=4, dropout=p).layer_graphs[0].operators)

    assert (dropouts(0.0), dropouts(0.1)) == (0, 7)


@pytest.mark.parametrize("target", ["nothing", "lm_hed", "proj"])
def test_a_target_that_matches_nothing_is_named_with_those_that_would(target: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"method\.targets: '{target}' matches no linear module.*\(there are down_proj, embed_tokens, "
        r"gate_proj,",
    ):
        model_of(Run(model="llama3.2-1b", method={"kind": "lora", "targets": ["q_proj", target]}))
