"""Latent attention, routers that choose groups, and what of them is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memsim.api import simulate
from memsim.errors import InputError, Unsupported
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models.common.attention import chosen
from memsim.run.job import Run
from memsim.simulation.build import model_of

V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 100,
}
V2: dict[str, Any] = {**V3, "model_type": "deepseek_v2", "topk_method": "greedy"}
GLM: dict[str, Any] = {
    **{key: value for key, value in V3.items() if "lora" not in key and "qk_" not in key},
    "model_type": "glm4_moe",
    "head_dim": 32,
}


def built(model: dict[str, Any], **changes: Any) -> Model:
    return model_of(Run(model=model, batch={"size": 2, "sequence": 16}, **changes))


def kinds(model: Model, layer: int) -> list[str]:
    return [op.kind for op in model.layer_graphs[model.pattern[layer]].operators]


def test_the_first_layers_are_dense() -> None:
    model = built({**V3, "first_k_dense_replace": 2, "num_hidden_layers": 4})
    assert model.pattern == (1, 1, 0, 0)
    assert "grouped_linear" in kinds(model, 2)
    assert "grouped_linear" not in kinds(model, 0)


def test_queries_have_a_latent_or_not() -> None:
    names = {p.name for p in built(V3).layers[0]}
    assert {"self_attn.q_a_proj.weight", "self_attn.q_a_layernorm.weight", "self_attn.q_b_proj.weight"} <= names
    assert "self_attn.q_proj.weight" in {p.name for p in built({**V3, "q_lora_rank": None}).layers[0]}


def test_the_correction_is_a_buffer() -> None:
    (buffer,) = [p for p in built(V3).layers[0] if p.buffer]
    assert (buffer.name, buffer.dtype) == ("mlp.gate.e_score_correction_bias", "bf16")
    (buffer,) = [p for p in built(GLM).layers[0] if p.buffer]
    assert buffer.dtype == "fp32"
    assert not [p for p in built(V2).layers[0] if p.buffer]


def test_keys_wider_than_values_are_for_the_memory_efficient_kernel() -> None:
    assert "efficient_attention" in kinds(built(V3), 0)
    assert "flash_attention" in kinds(built({**V3, "v_head_dim": 24}), 0)
    settings = Settings(1, 64, "bf16", "sdpa")
    assert chosen(settings, "bf16", (192, 128), False, True, offset=128) == "efficient"
    # values do not begin at a multiple of 16 bytes
    assert chosen(settings, "bf16", (192, 128), False, True, offset=20) == "math"


def test_what_chooses_experts_has_no_backward() -> None:
    graph = built(V3).layer_graphs[0]
    dead = [op for op in graph.operators if "dead" in op.attrs]
    assert {op.kind for op in dead} == {"add", "view", "topk", "sum", "masked_fill"}
    assert not any(op.requires_grad or op.saved for op in dead)
    assert [op.kind for op in dead if op.unkept] == ["topk", "masked_fill"]


@pytest.mark.parametrize("checkpointing", ["none", "full", "reentrant", "offload", "selective"])
@pytest.mark.parametrize(
    "model", [V2, {**V2, "topk_method": "group_limited_greedy"}, V3, GLM], ids=["greedy", "v2", "v3", "glm"]
)
def test_every_step_ends_with_what_is_kept(model: dict[str, Any], checkpointing: str) -> None:
    timeline = simulate(
        Run(model=model, batch={"size": 2, "sequence": 16}, checkpointing=checkpointing, optimizer="sgd")
    )
    first, *others = timeline.steps
    assert {step.end_allocated for step in others} == {first.end_allocated} == {timeline.loaded_allocated}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 1}, "model.num_key_value_heads: 1 with 2 attention heads cannot run"),
        ({"output_router_logits": True}, "model.output_router_logits: true is not supported yet"),
        ({"qk_rope_head_dim": 7}, "model.qk_rope_head_dim: 7 is odd"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "one expert is not supported yet"),
    ],
)
def test_what_is_not_modelled_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        built({**V3, **changes})


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (V3, {"n_group": 3}, "model.n_group: 3 groups of 8 experts do not come out even"),
        (V3, {"n_group": 8}, "at 2 experts or more a group"),
        (V3, {"topk_group": 3}, "model.topk_group: 3 is more than the 2 groups"),
        (V3, {"num_experts_per_tok": 9}, "model.num_experts_per_tok: 9 is more than the 8 experts"),
        (V3, {"first_k_dense_replace": -1}, "model.first_k_dense_replace: -1 is no number of layers"),
        (
            V2,
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            "model.num_attention_heads: 3 does not divide the 64 of hidden_size",
        ),
        (GLM, {"partial_rotary_factor": 2}, "model.partial_rotary_factor: 2 is not a share"),
    ],
)
def test_what_cannot_run_is_refused(model: dict[str, Any], changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        built({**model, **changes})


def test_a_router_that_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"model\.topk_method: noaux_tc is not"):
        built({**V2, "topk_method": "noaux_tc"})


def test_flash_attention_2_pads_values() -> None:
    assert "pad" in kinds(built(V3, attention="flash_attention_2"), 0)
    with pytest.raises(InputError, match="flash_attention_2 pads values of 32 elements to the 24 of keys"):
        built({**V3, "v_head_dim": 32}, attention="flash_attention_2")
