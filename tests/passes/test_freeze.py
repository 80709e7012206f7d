"""Partial fine-tuning: patterns of names, and what follows for the layers."""

from __future__ import annotations

import pytest

from memsim import Run
from memsim.api import simulate
from memsim.errors import InputError
from memsim.passes.freeze import is_match
from memsim.simulation.build import model_of


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("layers.3", "layers.3.mlp.up_proj.weight", True),
        ("layers.3", "layers.31.mlp.up_proj.weight", False),
        ("model.layers.3", "layers.3.mlp.up_proj.weight", True),
        ("bias", "layers.0.self_attn.q_proj.bias", True),
        ("layers.*.mlp.*", "layers.3.mlp.up_proj.weight", True),
        ("layers.?.mlp.*", "layers.31.mlp.up_proj.weight", False),
        ("lm_head", "lm_head.weight", True),
        ("norm", "layers.0.self_attn.q_norm.weight", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert is_match(pattern, name) is expected


def test_what_is_frozen_has_neither_gradient_nor_state() -> None:
    whole = simulate(Run(model="llama3.2-1b", steps=1, batch={"sequence": 64}))
    part = simulate(Run(model="llama3.2-1b", steps=1, batch={"sequence": 64}, train={"only": ["layers.15"]}))
    assert part.about.trainable_parameters == 60_821_504  # of 16 layers' 973,144,064
    assert part.peak_requested < whole.peak_requested - 4 * 900_000_000


def test_layers_of_one_mask_are_one_kind() -> None:
    model = model_of(Run(model="llama3.2-1b", train={"freeze": ["layers.0", "layers.1"]}))
    assert model.pattern == (0, 0, *[1] * 14) and len(model.layer_graphs) == 2
    assert (
        not model.layer_graphs[0].outputs[0].requires_grad
        or model.layer_graphs[0].inputs["hidden_states"].requires_grad
    )


@pytest.mark.parametrize(
    ("train", "method", "words"),
    [
        (
            {"only": ["nothing"]},
            {},
            "train.only: 'nothing' matches no parameter; names are such as embed_tokens.weight",
        ),
        ({"freeze": ["*"]}, {}, "train: nothing is left that trains"),
        ({"only": ["bias"]}, {"kind": "lora"}, "train: goes with method.kind full"),
    ],
)
def test_what_makes_no_sense_is_one_line(train: dict[str, list[str]], method: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as error:
        model_of(Run(model="llama3.2-1b", train=train, method=method))
    assert words in str(error.value)
