"""Mixtures of experts: what depends on routing, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from memsim.api import simulate
from memsim.errors import InputError, Unsupported
from memsim.models.common.moe import hit
from memsim.run.job import Run
from memsim.simulation.build import model_of

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 100,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def events(**changes: object) -> int:
    return len(simulate(Run(**{"model": MIXTRAL, "batch": {"size": 2, "sequence": 32}, **changes})).tape)


@pytest.mark.parametrize(
    ("routing", "rows", "expected"),
    [
        ("balanced", 100, 8),
        ("balanced", 6, 6),
        ("worst", 100, 2),
        ("zeros", 100, 0),
        (2.0, 100, 8),
        (4.0, 16, 8),
        (1.0, 6, 6),
    ],
)
def test_experts_that_have_a_row(routing: str | float, rows: int, expected: int) -> None:
    assert hit(routing, 8, 2, rows) == expected


def test_one_kernel_for_all_experts_does_not_depend_on_routing() -> None:
    assert len({events(sm=90, routing=routing) for routing in ("balanced", "worst", "zeros")}) == 1


def test_a_product_for_each_expert_takes_a_workspace_where_it_has_rows() -> None:
    layers, steps = 2, 3
    products = 2 * 3  # two weights; the result, and the gradients of both operands
    none, worst, balanced = (events(sm=80, routing=routing) for routing in ("zeros", "worst", "balanced"))
    assert worst - none == 2 * (2 * products * layers * steps)  # a request and a free, for two experts
    assert balanced - none == 2 * (worst - none)


def test_routing_changes_nothing_where_there_are_no_experts() -> None:
    dense = {**MIXTRAL, "model_type": "mistral"}
    assert events(model=dense, routing="zeros") == events(model=dense)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output_router_logits": True}, "model.output_router_logits: true is not supported yet"),
        ({"router_jitter_noise": 0.1}, "model.router_jitter_noise: 0.1 is not supported yet"),
        ({"intermediate_size": 92}, "multiples of 8 in bf16"),
        ({"num_local_experts": 1}, "one expert is not supported yet"),
        ({"num_experts_per_tok": 5}, "model.num_experts_per_tok: 5 is more than the 4 experts"),
    ],
)
def test_what_is_not_modelled_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        model_of(Run(model={**MIXTRAL, **changes}))


@pytest.mark.parametrize("routing", ["random", {"imbalance": 0.5}, {"balance": 1}, 3, None])
def test_a_routing_that_is_none_is_refused(routing: object) -> None:
    with pytest.raises(InputError, match="routing: "):
        Run(model=MIXTRAL, routing=routing)  # type: ignore[arg-type]


def test_a_routing_survives_being_written_out() -> None:
    run = Run(model=MIXTRAL, routing={"imbalance": 2})
    assert Run(**run.plain()) == run  # type: ignore[arg-type]


def test_layers_may_be_dense() -> None:
    qwen = {
        **MIXTRAL,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 32,
        "num_hidden_layers": 5,
        "mlp_only_layers": [0],
        "decoder_sparse_step": 2,
    }
    assert model_of(Run(model=qwen)).pattern == (1, 0, 1, 0, 1)


MOE = {"model_type": "qwen3_moe", "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64}
MOE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1000}
MOE |= {"num_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("method", "cast"), [({}, True), ({"quantization": "int8"}, True), ({"casts": "none"}, False)])
def test_a_quantized_mixture_says_that_its_experts_are_not(method: dict[str, object], cast: bool) -> None:
    size = 2 * 8 * 3 * 64 * 128 * (4 if cast else 2) / 2**30
    with pytest.warns(UserWarning) as caught:
        simulate(Run(model=MOE, method={"kind": "qlora", **method}, batch={"sequence": 64}, steps=1))
    (text,) = [str(warning.message) for warning in caught if "experts" in str(warning.message)]
    name = method.get("quantization", "nf4")
    assert text.startswith(
        f"method.quantization: {name} leaves the experts unquantized, as transformers 5 stacks them and bitsandbytes "
        f"replaces nn.Linear alone: {size:.3f} GiB of the weights"
    )
    assert ("which prepare_model_for_kbit_training casts to fp32" in text) == cast


def test_nothing_is_said_of_experts_that_are_not_there() -> None:
    dense = Run(model={**MOE, "mlp_only_layers": [0, 1]}, method={"kind": "qlora"}, batch={"sequence": 64}, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(dense)
        simulate(Run(model=MOE, method={"kind": "lora"}, batch={"sequence": 64}, steps=1))


@pytest.mark.parametrize("quantization", ["gptq", "awq"])
def test_checkpoints_of_packed_experts_are_refused(quantization: str) -> None:
    method = {"kind": "qlora", "quantization": quantization, "group_size": 32}
    with pytest.raises(Unsupported, match=f"method.quantization: {quantization} of stacked experts, .* is not"):
        model_of(Run(model=MOE, method=method))
    assert model_of(Run(model={**MOE, "mlp_only_layers": [0, 1]}, method=method)).count()


@pytest.mark.parametrize(
    "model",
    [
        {**MOE, "mlp_only_layers": [0, 1], "moe_intermediate_size": 7, "num_experts_per_tok": 9},
        {
            **MOE,
            "model_type": "glm4_moe",
            "first_k_dense_replace": 2,
            "n_routed_experts": 1,
            "partial_rotary_factor": 0.5,
        },
        {
            **MOE,
            "model_type": "deepseek_v3",
            "first_k_dense_replace": 2,
            "n_routed_experts": 1,
            "num_key_value_heads": 4,
            "head_dim": 16,
        },
    ],
)
def test_experts_that_no_layer_has_refuse_nothing(model: dict[str, object]) -> None:
    latent = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    built = model_of(Run(model={**model, **(latent if model["model_type"] == "deepseek_v3" else {})}))
    assert not any(p.is_experts for _, p in built.in_order())
