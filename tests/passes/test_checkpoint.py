"""Checkpointing: the same parameters and graph, recomputation in backward, and less held between the two."""

from __future__ import annotations

import numpy as np

from memsim.passes.checkpoint import checkpointed
from memsim.run import Run
from memsim.simulation import model_of, tape_of_run
from memsim.tape import Action, Category, Tape

SMALL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 500}


def tape(checkpointing: str) -> Tape:
    return tape_of_run(Run(model=SMALL, batch={"size": 2, "sequence": 64}, checkpointing=checkpointing, steps=1))


def alive_after_forward(tape: Tape) -> int:
    end = np.flatnonzero(tape.phase == tape.phases.index("0/forward"))[-1] + 1
    return int(np.where(tape.action[:end] == Action.ALLOC, tape.bytes[:end], -tape.bytes[:end]).sum())


def test_it_changes_no_graph() -> None:
    model = model_of(Run(model=SMALL))
    full = checkpointed(model, "full")
    assert full.checkpointed and not model.checkpointed
    assert full.layer_graphs is model.layer_graphs and full.outer is model.outer


def test_layers_run_again_in_backward_and_only_there() -> None:
    for kind, expected in (("none", set()), ("full", {"0/backward"})):
        events = tape(kind)
        again = events.phase[(events.category == Category.RECOMPUTATION) & (events.action == Action.ALLOC)]
        assert {events.phases[i] for i in again} == expected


def test_less_is_held_between_forward_and_backward() -> None:
    assert alive_after_forward(tape("full")) < alive_after_forward(tape("none"))
