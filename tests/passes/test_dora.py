"""DoRA: its magnitudes, how they are found, and what goes with it. Recordings in traces/held-out hold it
to the byte.
"""

from __future__ import annotations

import re

import pytest

from memsim import Run, simulate
from memsim.errors import InputError
from memsim.framework.roles import MAGNITUDE
from memsim.simulation.build import model_of
from memsim.simulation.pipeline import tape_of_run

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 1000}
MOE = {
    **MODEL,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "head_dim": 32,
}


def run(**method: object) -> Run:
    return Run(model=MODEL, method={"kind": "lora", "rank": 4, "dora": True, **method}, batch={"sequence": 16}, steps=1)


def test_a_magnitude_for_each_output_feature() -> None:
    model = model_of(run(targets=["up_proj", "embed_tokens"]))
    found = {p.name: p.shape for _, p in model.in_order() if p.module == MAGNITUDE}
    assert found == {
        "mlp.up_proj.lora_magnitude_vector.weight": (256,),
        "embed_tokens.lora_magnitude_vector.weight": (128,),
    }


def test_a_linear_stored_the_other_way_round_has_as_many() -> None:
    model = model_of(
        Run(model=GPT2, method={"kind": "lora", "dora": True, "targets": ["mlp.c_proj"]}, batch={"sequence": 16})
    )
    assert {p.shape for p in model.layers[0] if p.module == MAGNITUDE} == {(128,)}


@pytest.mark.parametrize(("kind", "quantization"), [("lora", "nf4"), ("qlora", "nf4"), ("qlora", "int8")])
def test_first_magnitudes_leave_nothing_behind(kind: str, quantization: str) -> None:
    """Loading holds what the parameters need, and of the norms' temporaries nothing."""
    held = {}
    for dora in (False, True):
        timeline = simulate(run(kind=kind, quantization=quantization, dora=dora))
        held[dora] = int(timeline.whole.requested[timeline.spans[0].stop - 1])
    features = 2 * (4 * 128 + 2 * 256 + 128)  # of the results of q, k, v, o, gate, up and down
    assert held[True] - held[False] == 4 * features


def test_loading_needs_the_product_of_the_adapters() -> None:
    tape = tape_of_run(run(targets=["up_proj"]))
    loading = [
        tape.phases[p] == "load" and "magnitude" in tape.operators[o]
        for p, o in zip(tape.phase, tape.operator, strict=True)
    ]
    # of two layers: made and freed: the product, it scaled, and the sum
    assert sum(int(b) == 2 * 128 * 256 for b in tape.bytes[loading]) == 2 * 2 * 3


def test_a_frozen_conv1d_of_fp32_gets_a_gradient_with_dropout() -> None:
    """PEFT transposes it to a new parameter, which trains, though nobody steps it."""

    def gradients(precision: str) -> int:
        method = {"kind": "lora", "dora": True, "dropout": 0.1, "targets": ["c_attn"]}
        tape = tape_of_run(Run(model=GPT2, method=method, precision=precision, batch={"sequence": 16}, steps=1))
        return int((tape.bytes == 4 * 128 * 384).sum())

    assert gradients("fp32") > gradients("bf16")


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            {"method": {"kind": "full", "dora": True}},
            InputError,
            "method.dora: goes with method.kind lora or qlora, not with full",
        ),
        (
            {"method": {"kind": "qlora", "quantization": "awq", "dora": True}},
            InputError,
            "method.dora: PEFT has no DoRA on awq; nf4 and int8 work",
        ),
        (
            {"model": MOE, "method": {"kind": "lora", "dora": True}},
            InputError,
            "method.dora: true cannot be with adapters on experts or routers",
        ),
    ],
)
def test_what_does_not_go_together(data: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        simulate(Run(**{"model": MODEL, "batch": {"sequence": 16}, **data}))
