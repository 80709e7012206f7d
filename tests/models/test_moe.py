"""Mixtures of experts: what depends on routing, and what is refused."""

from __future__ import annotations

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
