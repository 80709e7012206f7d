"""Stacks: every difference has a meaning, the golden stack has none, and versions name a stack."""

from __future__ import annotations

from dataclasses import fields

import pytest

from memsim.api import simulate
from memsim.cli.tables import differences
from memsim.errors import InputError
from memsim.run.job import Run
from memsim.stacks.known import GOLDEN, HF_4_48, HF_5_17, STACKS, stack_of_versions
from memsim.stacks.software import MEANING, Software

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


def test_every_difference_has_a_meaning() -> None:
    named = [field.name for field in fields(Software) if field.type == "bool"]
    assert named == list(MEANING)


def test_the_golden_stack_is_what_the_others_differ_from() -> None:
    assert not differences(GOLDEN)
    assert {*differences(HF_4_48), *differences(HF_5_17)} == {*MEANING, "allocator_ties"}


def test_versions_name_a_stack() -> None:
    assert all(stack_of_versions(stack.versions) is stack for stack in STACKS.values())
    assert stack_of_versions({"torch": "2.6.0+cu124"}) is HF_4_48
    assert stack_of_versions({"torch": "2.7.0"}) is None


def test_a_stack_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"stack: 'hf-4\.4' is not a stack; did you mean hf-4\.48"):
        Run(model="llama3.2-1b", stack="hf-4.4")


def test_the_older_stack_keeps_two_workspaces() -> None:
    """After a step the weights, the optimizer's state and two cuBLAS workspaces are left: 8,519,680 bytes each, or
    33,554,432 on Hopper.
    """
    for sm, workspace in ((80, 8_519_680), (90, 33_554_432)):
        held = [
            simulate(Run(model=SMALL, stack=name, sm=sm, optimizer="sgd")).steps[-1].end_allocated
            for name in ("golden", "hf-4.48")
        ]
        frequencies = 512  # the golden stack has them twice
        assert held[1] - held[0] == 2 * workspace - frequencies


def test_a_report_names_the_versions_of_its_stack() -> None:
    assert simulate(Run(model=SMALL, stack="hf-4.48")).about.versions == {
        "torch": "2.6.0",
        "transformers": "4.48.1",
        "peft": "0.13.2",
    }
