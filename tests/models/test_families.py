"""Which models are taken for a Llama, and what the families refuse."""

from __future__ import annotations

import pytest

from memsim.errors import InputError, Unsupported
from memsim.models import is_assumed
from memsim.run.job import Run
from memsim.simulation.build import model_of

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@pytest.mark.parametrize(
    "fields",
    [{}, {"rms_norm_eps": 1e-6}, {"layer_types": ["full_attention", "full_attention"]}, {"hidden_act": "gelu"}],
)
def test_an_unknown_model_with_the_fields_of_llama_is_assumed(fields: dict[str, object]) -> None:
    assert is_assumed({**LLAMA, "model_type": "newest", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_norm_eps": 1e-5},
        {"norm_epsilon": 1e-5},
        {"hidden_dropout_prob": 0.1},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"partial_rotary_factor": 0.5},
        {"alibi": True},
        {"moe_intermediate_size": 32},
        {"logit_scale": 0.0625},
        {"embedding_multiplier": 2.0},
        {"use_qk_norm": True},
        {"no_rope_layers": [1, 0]},
        {"model_type": "hunyuan_v1_dense"},
    ],
)
def test_what_is_no_llama_is_refused(fields: dict[str, object]) -> None:
    config = {**LLAMA, "model_type": "newest", **fields}
    assert not is_assumed(config)
    with pytest.raises(Unsupported, match="is not supported yet; there are llama, mistral"):
        model_of(Run(model=config))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"model_type": "gpt_oss", "num_local_experts": 8},
            "attention: sdpa does not run with gpt_oss, .*; eager does",
        ),
        (
            {"model_type": "glm", "head_dim": 16, "partial_rotary_factor": 0.1},
            "model.partial_rotary_factor: 0.1 of a head of 16 is 1",
        ),
        (
            {"model_type": "stablelm", "qk_layernorm": True},
            "model.qk_layernorm: true is not supported yet for stablelm",
        ),
        (
            {"model_type": "olmo", "clip_qkv": 8.0, "attention_bias": True},
            "model.clip_qkv: 8.0 with model.attention_bias is not supported",
        ),
        (
            {"model_type": "ministral", "sliding_window": None, "head_dim": 16},
            "model.sliding_window: null does not run with ministral",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "model.no_rope_layers: needs 2 entries"),
        (
            {"model_type": "smollm3", "layer_types": ["sliding_attention"] * 2},
            "model.layer_types: sliding_attention needs model.sliding_window",
        ),
        ({"model_type": "cohere2", "layer_types": ["sliding_attention"]}, "model.layer_types: needs 2 entries"),
        ({"model_type": "opt", "layerdrop": 0.1}, "model.layerdrop: 0.1, which leaves out layers by chance"),
        (
            {"model_type": "opt", "max_position_embeddings": 16},
            "batch.sequence: 512 tokens are more than the 16 positions",
        ),
        ({"model_type": "phi", "attention_dropout": 2}, "model.attention_dropout: 2 is not a probability"),
        ({"model_type": "olmo3", "sliding_window": None}, "model.sliding_window: null does not run with olmo3"),
        (
            {"model_type": "exaone4", "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "needs model.sliding_window, a number of tokens",
        ),
        ({"model_type": "falcon", "alibi": True}, "model.alibi: true is not supported yet for falcon; false is"),
        (
            {"model_type": "gpt_bigcode", "n_positions": 16},
            "batch.sequence: 512 tokens are more than the 16 positions that gpt_bigcode has",
        ),
        (
            {"model_type": "gemma", "use_bidirectional_attention": True},
            "model.use_bidirectional_attention: true is not supported",
        ),
    ],
)
def test_what_a_family_refuses(fields: dict[str, object], text: str) -> None:
    config = {**LLAMA, **({"num_key_value_heads": 4} if fields["model_type"] == "opt" else {}), **fields}
    with pytest.raises((InputError, Unsupported), match=text):
        model_of(Run(model=config, attention="sdpa"))


def test_bitsandbytes_leaves_linear_modules_of_another_class() -> None:
    with pytest.raises(InputError, match="qlora leaves linear modules of falcon as they are"):
        model_of(Run(model={**LLAMA, "model_type": "falcon"}, method={"kind": "qlora"}))


def test_strategies_that_bloom_does_not_have_yet() -> None:
    config = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
    with pytest.raises(Unsupported, match="reentrant with model_type bloom, whose layers return more than one tensor"):
        model_of(Run(model=config, attention="eager", checkpointing="reentrant"))
    with pytest.raises(Unsupported, match="add with an activation in Python"):
        model_of(Run(model=config, attention="eager", checkpointing={"save": ["matmul", "add"]}))
    with pytest.raises(
        InputError, match="attention: sdpa does not run with bloom, whose scores fall with distance; eager does"
    ):
        model_of(Run(model=config, attention="sdpa"))


def test_casts_of_biases_are_not_saved_selectively() -> None:
    with pytest.raises(InputError, match="cast fails in PyTorch where 4-bit modules have biases"):
        config = {**LLAMA, "model_type": "glm", "head_dim": 16}
        model_of(Run(model=config, method={"kind": "qlora"}, checkpointing={"save": ["cast"]}))


def test_an_expert_more_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"model.num_experts_per_tok: 4 is more than the 2 experts there are"):
        model_of(Run(model={**LLAMA, "model_type": "gpt_oss", "num_local_experts": 2}, attention="eager"))
