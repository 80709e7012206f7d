"""LoRA on routers and stacked experts: which parameters PEFT adapts, and with what rank."""

from __future__ import annotations

import pytest

from memsim.errors import InputError
from memsim.passes.lora import Lora, matches
from memsim.passes.lora_parameters import converted, rank_of


def test_all_linear_takes_routers_and_experts_by_their_old_names() -> None:
    lora = converted(Lora(8), "mixtral")
    assert [rank_of(lora, f"mlp.{name}") for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")] == [8, 16, 8]
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
