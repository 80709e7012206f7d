"""Checkpointing: the same parameters and graph, recomputation in backward, and less held between the two."""

from __future__ import annotations

import numpy as np
import pytest

from memsim.api import simulate
from memsim.errors import InputError
from memsim.framework.model import Checkpoint
from memsim.passes.checkpoint import checkpointed
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.simulation.pipeline import tape_of_run
from memsim.tape import Action, Category, Tape

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


def tape(checkpointing: object) -> Tape:
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


def of_layers(strategy: object, layers: int = 4) -> list[str]:
    run = Run(model={**SMALL, "num_hidden_layers": layers}, checkpointing=strategy)
    return [checkpoint.how for checkpoint, _ in model_of(run).by_layer()]


def test_which_layers() -> None:
    assert of_layers({"every": 2}) == ["full", "none", "full", "none"]  # as transformers' every_n_layers
    assert of_layers({"first": 3}) == ["full", "full", "full", "none"]
    assert of_layers({"plan": [[1, "full"], [2, {"save": ["matmul"]}], [1, "none"]]}) == [
        "full",
        "selective",
        "selective",
        "none",
    ]


def test_segments_are_checkpointed_as_one() -> None:
    for strategy, sizes in (("sqrt", [4, 3, 3]), ({"segments": 4}, [3, 3, 2, 2])):
        run = Run(model={**SMALL, "num_hidden_layers": 10}, checkpointing=strategy)
        assert model_of(run).checkpoints == tuple(Checkpoint(size, "full") for size in sizes)


def test_what_is_kept_falls_with_what_is_recomputed() -> None:
    kept = [
        alive_after_forward(tape(strategy))
        for strategy in ("none", "selective", {"save": ["attention"]}, "full", "sqrt")
    ]
    assert kept == sorted(kept, reverse=True)
    assert alive_after_forward(tape("offload")) <= kept[3]
    assert alive_after_forward(tape({"first": 2})) == alive_after_forward(tape({"every": 2}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("half", "checkpointing: half is not a strategy; there are none, full, reentrant"),
        ({"every": 0}, "checkpointing: every: 0 is not a whole number of layers from 1"),
        ({"every": 2, "first": 1}, "is not a strategy; there are none"),
        ({"save": []}, "save: [] is not a list of operators such as [matmul, attention]"),
        ({"first": 5}, "checkpointing.first: 5 is more than the model's 4 layers"),
        (
            {"save": ["softmix"]},
            "checkpointing.save: 'softmix' is no operator; did you mean softmax?; of this model's layers there are "
            "matmul, attention, add",
        ),
        ({"plan": [[3, "full"]]}, "checkpointing.plan: its layers are 3, the model's 4"),
        ({"plan": [[4, "sqrt"]]}, "plan: sqrt is not a strategy of single layers; none, full"),
        ({"budget": "much"}, "'much' is not a size; write 24GiB"),
    ],
)
def test_bad_strategies_get_one_line(value: object, words: str) -> None:
    with pytest.raises(InputError) as error:
        model_of(Run(model=SMALL, checkpointing=value))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_older_stack_has_some_strategies() -> None:
    with pytest.raises(
        InputError,
        match=r"checkpointing: segments with stack hf-4.48 is not supported yet; none, full, reentrant, selective, "
        r"save, every",
    ):
        model_of(Run(model=SMALL, checkpointing={"segments": 2}, stack="hf-4.48"))
    with pytest.raises(
        InputError, match=r"checkpointing: reentrant with frozen embeddings trains no layer with stack " r"hf-4.48"
    ):
        model_of(Run(model=SMALL, checkpointing="reentrant", train={"freeze": ["embed_tokens"]}, stack="hf-4.48"))
    with pytest.raises(
        InputError, match=r"checkpointing: selective with method qlora and stack hf-4.48 is not " r"supported yet"
    ):
        model_of(Run(model=SMALL, checkpointing="selective", method={"kind": "qlora"}, stack="hf-4.48"))


def test_an_operator_that_the_layers_lack_is_a_note_as_pytorch_ignores_it() -> None:
    batch = {"sequence": 64}
    with pytest.warns(
        UserWarning, match=r"checkpointing.save: softmax is no operator of this model's layers, so nothing"
    ):
        noted = simulate(Run(model=SMALL, batch=batch, checkpointing={"save": ["matmul", "softmax"]}, steps=1))
    plain = simulate(Run(model=SMALL, batch=batch, checkpointing={"save": ["matmul"]}, steps=1))
    assert noted.peak_reserved == plain.peak_reserved and noted.steps[0] == plain.steps[0]
    planned = Run(model=SMALL, batch=batch, checkpointing={"plan": [[1, {"save": ["softmax"]}], [3, "none"]]}, steps=1)
    with pytest.warns(UserWarning, match="checkpointing.save: softmax is no operator of this model's layers"):
        simulate(planned)


@pytest.mark.parametrize(("layers", "order"), [(46, "cos sin"), (47, "sin cos"), (48, "sin cos")])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_in_which_order_nested_checkpoints_let_go_of_the_rotary_tables(layers: int, order: str, kind: str) -> None:
    """As recorded: CPython puts off what is too deep, first the call's tuple, then its dict."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = {"model_type": kind, **sizes, "num_hidden_layers": layers, "vocab_size": 200, "sliding_window": None}
    tape = tape_of_run(Run(model=model, batch={"sequence": 16}, checkpointing="reentrant", steps=1))
    last = tape.operator == tape.operators.index("del loss, tokens")
    freed = tape.storage[last & (tape.action == Action.FREE)].tolist()
    made = {int(s): int(b) for s, b in zip(tape.storage, tape.bytes, strict=True)}
    tables = sorted(storage for storage in freed if made[storage] == 16 * 16 * 2)  # cos is made first
    assert [("cos", "sin")[tables.index(storage)] for storage in freed if storage in tables] == order.split()
