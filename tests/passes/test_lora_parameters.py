"""LoRA on routers and stacked experts: which parameters PEFT adapts, and with what rank."""

from __future__ import annotations

import pytest

from memsim.errors import InputError, Unsupported
from memsim.framework.model import Model
from memsim.passes.lora_parameters import converted, rank_of
from memsim.passes.lora_settings import Lora, matches
from memsim.run.job import Run
from memsim.simulation.build import model_of


def test_all_linear_takes_routers_and_experts_by_their_old_names() -> None:
    lora = converted(Lora(8), "mixtral")
    assert [rank_of(lora, f"mlp.{name}") for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")] == [
        8,
        16,
        8,
    ]
    assert matches(lora, "self_attn.q_proj")


def test_old_names_are_modules_no_more() -> None:
    lora = converted(Lora(8, ["q_proj", "gate_proj", "up_proj"]), "qwen3_moe")
    assert lora.targets == ("q_proj",)
    assert lora.parameters == (("gate_up_proj", 16),)
    assert not matches(converted(Lora(8), "qwen3_moe"), "mlp.down_proj")


def test_families_without_experts_stay_as_they_are() -> None:
    assert converted(Lora(8), "llama") == Lora(8)


def test_half_of_a_fused_pair_is_refused() -> None:
    with pytest.raises(InputError, match="'w1' needs 'w3' beside it"):
        converted(Lora(8, ["w1"]), "mixtral")


def test_dropout_on_experts_is_refused() -> None:
    with pytest.raises(InputError, match=r"method.dropout: 0.1 cannot be with adapters on experts or routers \(w2\)"):
        converted(Lora(8, ["w2"], 0.1), "mixtral")
    assert converted(Lora(8, ["q_proj"], 0.1), "mixtral").parameters == ()


OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OSS |= {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 1000}


def adapted(**method: object) -> Model:
    return model_of(Run(model=OSS, attention="eager", method={"kind": "lora", **method}))


def test_target_parameters_of_every_layer() -> None:
    model = adapted(rank=4, target_parameters=["experts.gate_up_proj", "router.weight"])
    (kind,) = {model.layers[kind] for kind in model.pattern}
    shapes = {p.name: p.shape for p in kind if p.adapter and ".mlp" in f".{p.name}"}
    assert shapes == {
        "mlp.router.weight.lora_A.weight": (4, 64),
        "mlp.router.weight.lora_B.weight": (8, 4),
        "mlp.experts.gate_up_proj.lora_A.weight": (32, 64),
        "mlp.experts.gate_up_proj.lora_B.weight": (192, 32),
    }


def test_target_parameters_of_one_layer() -> None:
    model = adapted(target_parameters=["2.mlp.experts.down_proj"])
    adapters = [any("down_proj.lora_A" in p.name for p in model.layers[kind]) for kind in model.pattern]
    assert adapters == [False, False, True, False]


def test_adapters_on_parameters_alone() -> None:
    model = adapted(targets=[], target_parameters=["experts.down_proj"])
    assert {p.name.rpartition(".lora_")[0] for p in model.layers[0] if p.adapter} == {"mlp.experts.down_proj"}


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (
            {"target_parameters": ["experts.gate_up"]},
            "'experts.gate_up' matches no parameter.*did you mean mlp.experts.gate_up_proj",
        ),
        ({"target_parameters": ["self_attn.sinks"]}, "'self_attn.sinks' is self_attn.sinks, which is not supported"),
        (
            {"target_parameters": ["experts.down_proj"], "dropout": 0.1},
            "method.dropout: 0.1 cannot be with adapters on parameters",
        ),
        (
            {"target_parameters": ["experts.down_proj"], "kind": "full"},
            "method.target_parameters: goes with method.kind lora or qlora",
        ),
        ({"targets": []}, r"method.targets: \[\] adapts nothing"),
    ],
)
def test_target_parameters_that_are_refused(method: dict[str, object], text: str) -> None:
    with pytest.raises((InputError, Unsupported), match=text):
        adapted(**method)


def test_target_parameters_of_a_family_with_older_names_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"method.target_parameters with model_type mixtral"):
        converted(Lora(8, target_parameters=("experts.down_proj",)), "mixtral")
