"""(IA)³: where its vectors go, and what goes with it. Recordings in traces/held-out hold it to the byte."""

from __future__ import annotations

import re

import pytest

from memsim import Run, simulate
from memsim.errors import InputError
from memsim.simulation.build import model_of

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
PHI3 = {**MODEL, "model_type": "phi3", "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 1000}


def vectors(model: dict[str, object], **method: object) -> dict[str, tuple[int, ...]]:
    made = model_of(Run(model=model, method={"kind": "ia3", **method}, batch={"sequence": 16}))
    return {p.name.removesuffix(".ia3_l"): p.shape for p in made.layers[0] if p.adapter}


def test_targets_are_those_that_peft_has_for_the_family() -> None:
    assert vectors(MODEL) == {"self_attn.k_proj": (128, 1), "self_attn.v_proj": (128, 1), "mlp.down_proj": (1, 256)}
    assert vectors({**MODEL, "model_type": "qwen2"}) == {
        "self_attn.q_proj": (128, 1),
        "self_attn.v_proj": (128, 1),
        "mlp.down_proj": (1, 256),
    }
    assert vectors(GPT2) == {"attn.c_attn": (384, 1), "mlp.c_proj": (1, 512)}


def test_a_feedforward_module_scales_its_input() -> None:
    assert vectors(MODEL, targets=["up_proj"], feedforward=[]) == {"mlp.up_proj": (256, 1)}
    assert vectors(MODEL, targets=["up_proj"], feedforward=["up_proj"]) == {"mlp.up_proj": (1, 128)}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_on_quantized_weights_nothing_else_trains(quantization: str) -> None:
    model = model_of(Run(model=GPT2, method={"kind": "qia3", "quantization": quantization}, batch={"sequence": 16}))
    assert {p.name.rpartition(".")[2] for _, p in model.in_order() if p.trainable and not p.buffer} == {"ia3_l"}
    assert all(p.quantized for p in model.layers[0] if p.module == "linear" and p.name.endswith(".weight"))


def test_quantized_conv1d_is_stored_as_linear_modules_are() -> None:
    model = model_of(Run(model=GPT2, method={"kind": "qlora"}, batch={"sequence": 16}))
    shapes = {p.name: p.shape for p in model.layers[0] if p.name.endswith("c_attn.weight")}
    assert shapes == {"attn.c_attn.weight": (384, 128)}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"model": PHI3},
            "method.targets: PEFT has no default of ia3 for model_type phi3; give method.targets and feedforward",
        ),
        (
            {"method": {"kind": "ia3", "targets": ["q_proj"], "feedforward": ["up_proj"]}},
            "method.feedforward: 'up_proj' is not among method.targets (q_proj)",
        ),
        (
            {"method": {"kind": "ia3", "targets": ["embed_tokens"], "feedforward": []}},
            "method.targets: PEFT's ia3 takes no embedding",
        ),
        (
            {"method": {"kind": "qia3", "quantization": "gptq"}},
            "method.quantization: PEFT has no ia3 on gptq; nf4 and int8 work",
        ),
        (
            {"method": {"kind": "ia3", "quantization": "int8"}},
            "method.quantization: int8 goes with method.kind qlora or qia3; with ia3 weights are not",
        ),
        (
            {"method": {"kind": "qia3", "modules_to_save": ["down_proj"]}},
            "method.modules_to_save: mlp.down_proj is quantized, and cannot train",
        ),
        (
            {"method": {"kind": "lora", "feedforward": ["up_proj"]}},
            "method.feedforward: goes with method.kind ia3 or qia3, not with lora",
        ),
    ],
)
def test_what_does_not_go_together(data: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        simulate(Run(**{"model": MODEL, "method": {"kind": "ia3"}, "batch": {"sequence": 16}, **data}))
