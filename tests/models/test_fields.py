"""Fields of a config.json that change memory: as transformers 5.23 reads them on the virtual GPU, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from memsim import Run, catalog, simulate
from memsim.errors import InputError
from memsim.framework.model import Model
from memsim.simulation import tape_of_run
from memsim.simulation.build import model_of
from memsim.tape import Action

SMALL: dict[str, dict[str, object]] = yaml.safe_load(
    (Path(__file__).parents[1] / "frozen" / "families.yaml").read_text()
)
LONG = [1.0] * 24


def built(kind: str, **fields: object) -> Model:
    return model_of(Run(model={"model_type": kind, **SMALL[kind], **fields}, batch={"size": 2, "sequence": 64}))


def requests(kind: str, **fields: object) -> list[int]:
    """Allocations and their bytes, while loading and in the forward and backward of a step."""
    run = Run(
        model={"model_type": kind, **SMALL[kind], **fields},
        batch={"size": 2, "sequence": 64},
        steps=1,
        optimizer="sgd",
        routing="zeros",
    )
    tape = tape_of_run(run)
    made = tape.action == Action.ALLOC
    found = []
    for ends in (("load",), ("forward", "backward")):
        there = made & [tape.phases[phase].endswith(ends) for phase in tape.phase]
        found += [int(there.sum()), int(tape.bytes[there].sum())]
    return found


@pytest.mark.parametrize(
    ("kind", "fields", "recorded"),
    [
        ("ernie4_5", {}, [22, 596096, 348, 402564719]),  # whose config class has head_dim 128
        ("ernie4_5", {"attention_dropout": 0.1}, [22, 596096, 348, 402564719]),
        ("gemma2", {"attn_logit_softcapping": 0.0}, [38, 4647554, 745, 770490523]),
        ("cohere2", {"use_qk_norm": True}, [112, 3135040, 1189, 1421615671]),
        ("gemma", {"sliding_window": 8}, [23, 989826, 339, 404927855]),
        ("glm4", {"sliding_window": 8}, [17, 417952, 244, 165198935]),
        ("gemma3_text", {"hidden_act": "relu"}, [31, 363010, 579, 396736035]),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
            [23, 7439744, 427, 374232327],
        ),
    ],
)
def test_what_transformers_reads_is_read_and_nothing_else(
    kind: str, fields: dict[str, object], recorded: list[int]
) -> None:
    assert requests(kind, **fields) == recorded


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("llama", {"is_causal": False}, "model.is_causal: false is not supported yet; true is"),
        ("qwen3", {"output_hidden_states": True}, "model.output_hidden_states: true is not supported yet; false is"),
        ("falcon", {"output_attentions": True}, "model.output_attentions: true is not supported yet; false is"),
        ("gpt2", {"return_dict": False}, "model.return_dict: false is not supported yet; true is"),
        ("llama", {"per_layer_config": {"0": {}}}, "model.per_layer_config: {'0': {}} is not supported yet; null is"),
        (
            "mixtral",
            {"experts_implementation": "eager"},
            "model.experts_implementation: 'eager' is not supported yet; grouped_mm is",
        ),
        (
            "llama",
            {"gradient_checkpointing": True},
            "model.gradient_checkpointing: true checkpoints every layer",
        ),
        ("llama", {"head_dim": 1}, "model: heads of which 1 elements turn are not supported"),
        ("llama", {"rope_scaling": {"rope_type": "mrope"}}, "model.rope_scaling: rope_type mrope is not supported yet"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type linear does not run with phi3"),
        (
            "olmo",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}},
            "model.partial_rotary_factor: 0.25 with rope_type linear does not run with olmo, whose heads turn whole",
        ),
        ("gpt_oss", {"partial_rotary_factor": 0.5}, "model.partial_rotary_factor: does not run with gpt_oss"),
        (
            "qwen2_moe",
            {"layer_types": ["sliding_attention"] * 6},
            "model.layer_types: other than full_attention is not",
        ),
        (
            "qwen3_moe",
            {"num_local_experts": 8},
            "model.num_experts: num_experts and num_local_experts are one field, and",
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "needs model.use_sliding_window: true with qwen2"),
        ("phi3", {"sliding_window": 0.5}, "model.sliding_window: 0.5 is not a whole number of tokens, or null"),
        ("falcon", {"ffn_hidden_size": 0}, "model.ffn_hidden_size: 0 is not a positive integer"),
        ("falcon", {"num_kv_heads": 0}, "model.num_kv_heads: 0 is not a positive integer"),
        ("falcon", {"num_ln_in_parallel_attn": 8}, "model.num_ln_in_parallel_attn: 8 does not run with falcon"),
        ("phi", {"head_dim": 16}, "model.qk_layernorm: true does not run with phi where the heads do not make up"),
        (
            "stablelm",
            {"head_dim": 16},
            "model.head_dim: 16 does not run with stablelm, whose heads make up hidden_size",
        ),
        ("deepseek_v3", {"head_dim": 64}, "model.head_dim: 64 does not run with deepseek_v3, of whose heads the 32"),
        ("ministral", {"head_dim": None}, "model: the config of a ministral needs head_dim"),
    ],
)
def test_what_is_refused(kind: str, fields: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        built(kind, **fields)


def test_fields_that_say_what_is_anyway() -> None:
    plain = built("llama").count()
    usual = {"is_causal": True, "output_attentions": False, "return_dict": True, "gradient_checkpointing": False}
    assert built("llama", **usual, experts_implementation="grouped_mm", pruned_heads={}).count() == plain
    assert built("bert", is_causal=False).count() == built("bert").count()


def test_gradient_checkpointing_of_a_config_is_checkpointing_full() -> None:
    model = {"model_type": "llama", **SMALL["llama"], "gradient_checkpointing": True}
    assert model_of(Run(model=model, checkpointing="full")).checkpoints


def test_longrope_needs_its_factors() -> None:
    scaling = {"type": "longrope", "long_factor": LONG, "short_factor": LONG}
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "partial_rotary_factor": 0.75}
    assert built("phi3", **sizes, rope_scaling=scaling).count()
    for wrong, found in (({"long_factor": None}, "missing"), ({"long_factor": LONG[1:]}, "not 24 numbers")):
        with pytest.raises(InputError, match=rf"model.rope_scaling.long_factor: {found}; longrope takes one for each"):
            built("phi3", **sizes, rope_scaling={**scaling, **wrong})
    rope = catalog.models()["phi4-mini"]["rope_scaling"]
    assert isinstance(rope, dict) and len(rope["long_factor"]) == len(rope["short_factor"]) == 48


def test_exaone_4s_pattern_of_letters_is_nothing_beside_layer_types() -> None:
    types = ["sliding_attention", "full_attention"]
    plain = requests("exaone4", layer_types=types)
    assert requests("exaone4", layer_types=types, sliding_window_pattern="LLLG") == plain
    assert requests("exaone4", sliding_window_pattern=4) == requests("exaone4")
    with pytest.raises(InputError, match=r"'LLLG' without model.layer_types does not run .*; 4 is the same"):
        built("exaone4", sliding_window_pattern="LLLG")
    with pytest.raises(InputError, match=r"model.sliding_window: null without model.layer_types does not run"):
        built("exaone4", sliding_window=None)


@pytest.mark.parametrize("name", catalog.models())
def test_every_name_of_the_catalogue_simulates_as_it_stands(name: str) -> None:
    run = Run(model=name)
    assert model_of(run).count()
    assert run.attention == ("eager" if run.config["model_type"] in ("gemma2", "gpt_oss", "bloom") else "sdpa")


def test_attention_that_is_said_stays() -> None:
    with pytest.raises(InputError, match="attention: sdpa does not run with gemma2"):
        model_of(Run(model="gemma2-2b", attention="sdpa"))
    small = {"model_type": "llama", **SMALL["llama"]}
    assert Run(model={**small, "attn_implementation": "eager"}).attention == "eager"
    assert Run(model={**small, "attn_implementation": "eager"}, attention="sdpa").attention == "sdpa"
    with pytest.raises(InputError, match=r"model.attn_implementation: 'flex_attention' is not supported yet; sdpa, "):
        Run(model={**small, "attn_implementation": "flex_attention"})


def test_a_v100_takes_the_stack_that_runs_on_it() -> None:
    run = Run(model="llama3.2-1b", device="v100-32gb", precision="fp16", method={"kind": "lora"})
    assert run.stack == "hf-4.48" and "stack: hf-4.48" in run.to_yaml() and model_of(run).count()
    small = Run(model={"model_type": "llama", **SMALL["llama"]}, device="v100-32gb", precision="fp16", steps=1)
    with pytest.warns(
        UserWarning, match=r"^stack: hf-4\.48, as torch 2\.15\.0 of the usual one has no code for sm 70$"
    ):
        simulate(small)
    assert Run(model="llama3.2-1b", device="h100").stack == "golden"
    with pytest.raises(InputError, match=r"sm: 70 is not supported with torch 2\.15\.0; 75 and later are"):
        model_of(Run(model="llama3.2-1b", device="v100-32gb", stack="golden"))
