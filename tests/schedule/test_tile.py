"""Repeating layers and steps as arrays gives the Tape that executing them all gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from memsim.run.job import Run
from memsim.schedule.optimizers.torch_optim import Optimizer
from memsim.schedule.plan import Plan
from memsim.schedule.recording import alike_layers, record
from memsim.schedule.tile import repeats_of
from memsim.simulation.build import model_of
from memsim.simulation.device import platform_of
from memsim.tape import Action, Category, Tape

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}

runs = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 9),
        "model_type": st.sampled_from(["llama", "qwen2", "qwen3", "mistral"]),
        "batch": st.fixed_dictionaries(
            {"size": st.integers(1, 3), "sequence": st.sampled_from([1, 7, 64, 333]), "accumulation": st.integers(1, 2)}
        ),
        "method": st.sampled_from(
            [
                {"kind": "full"},
                {"kind": "lora", "rank": 4},
                {"kind": "lora", "rank": 2, "targets": ["q_proj"], "dropout": 0.1},
            ]
        ),
        "precision": st.sampled_from(["bf16", "fp32"]),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "checkpointing": st.sampled_from(["none", "full"]),
        "optimizer": st.sampled_from(
            ["adamw", "adamw-fused", "adamw-for-loop", "sgd-momentum", "adafactor", "adamw-8bit", "muon", "adagrad"]
        ),
        "optimizer_in_backward": st.booleans(),
        "clip_grad_norm": st.sampled_from([None, 1.0]),
        "steps": st.integers(1, 4),
        "stack": st.sampled_from(["golden", "hf-4.48"]),
    }
)


def tape(drawn: dict[str, object], whole: bool) -> Tape:
    drawn = dict(drawn)
    layers, kind = drawn.pop("layers"), drawn.pop("model_type")
    if kind == "qwen3" or drawn.get("batch", {}).get("sequence") == 1:
        drawn["stack"] = "golden"
    if drawn.get("optimizer_in_backward"):
        drawn |= {"batch": {**drawn["batch"], "accumulation": 1}, "clip_grad_norm": None, "stack": "golden"}
    if drawn.get("optimizer") in ("muon", "adagrad"):
        drawn["stack"] = "golden"
    run = Run(model={**SMALL, "model_type": kind, "num_hidden_layers": layers}, **drawn)
    plan = Plan(
        run.steps,
        run.batch.accumulation,
        run.clip_grad_norm,
        Optimizer(run.optimizer),
        in_backward=run.optimizer_in_backward,
    )
    return record(model_of(run), plan, platform_of(run), whole=whole)


def in_order(tape: Tape) -> np.ndarray:
    """Storages numbered by their first allocation."""
    number = np.full(tape.storages, -1)
    made = tape.storage[tape.action == Action.ALLOC]
    number[made] = np.arange(len(made))
    return number[tape.storage]


@settings(max_examples=40, deadline=None)
@given(runs)
def test_tiled_equals_executed(drawn: dict[str, object]) -> None:
    assert_equal(tape(drawn, False), tape(drawn, True))


def assert_equal(tiled: Tape, whole: Tape) -> None:
    assert len(tiled) == len(whole)
    for name in ("action", "bytes", "layer", "category"):
        assert np.array_equal(getattr(tiled, name), getattr(whole, name)), name
    assert np.array_equal(in_order(tiled), in_order(whole))
    assert [tiled.operators[i] for i in tiled.operator] == [whole.operators[i] for i in whole.operator]
    assert [tiled.phases[i] for i in tiled.phase] == [whole.phases[i] for i in whole.phase]


strategies = st.one_of(
    st.sampled_from(["reentrant", "sqrt", "selective", "megatron", "offload"]),
    st.builds(lambda k: {"every": k}, st.integers(1, 5)),
    st.builds(lambda k: {"first": k}, st.integers(1, 5)),
    st.builds(lambda n: {"segments": n}, st.integers(1, 5)),
)


@settings(max_examples=30, deadline=None)
@given(runs, strategies, st.integers(5, 26))
def test_tiled_equals_executed_with_every_strategy(drawn: dict[str, object], strategy: object, layers: int) -> None:
    drawn = {**drawn, "checkpointing": strategy, "stack": "golden", "layers": layers, "steps": 2}
    assert_equal(tape(drawn, False), tape(drawn, True))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 8),
            st.sampled_from(["none", "full", "reentrant", "selective", {"save": ["mul", "attention"]}]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_tiled_equals_executed_with_plans(plan: list[tuple[int, object]]) -> None:
    drawn = {
        "checkpointing": {"plan": [list(row) for row in plan]},
        "layers": sum(count for count, _ in plan),
        "model_type": "llama",
        "steps": 2,
    }
    assert_equal(tape(drawn, False), tape(drawn, True))


def test_few_layers_are_executed() -> None:
    for strategy, most in (("none", 5), ({"first": 30}, 8), ({"every": 4}, 20), ("sqrt", 45)):
        run = Run(model={**SMALL, "model_type": "llama", "num_hidden_layers": 80}, checkpointing=strategy)
        kept, _ = repeats_of(*alike_layers(model_of(run)))
        assert len(kept) <= most, strategy


@settings(max_examples=40, deadline=None)
@given(runs)
def test_a_storage_is_allocated_once_and_freed_at_most_once_after(drawn: dict[str, object]) -> None:
    events = tape(drawn, False)
    alive: set[int] = set()
    ever: set[int] = set()
    for action, storage in zip(events.action.tolist(), events.storage.tolist(), strict=True):
        if action == Action.ALLOC:
            assert storage not in ever
            ever.add(storage)
            alive.add(storage)
        else:
            alive.remove(storage)
    held = {int(c) for c in events.category[np.isin(events.storage, list(alive)) & (events.action == Action.ALLOC)]}
    kept = {Category.SCRATCH} if drawn.get("stack") == "hf-4.48" else set()  # workspaces of cuBLAS
    assert held <= {Category.WEIGHTS, Category.ADAPTERS, Category.OPTIMIZER_STATE, Category.INPUTS, *kept}


def test_a_step_ends_with_what_it_began_with() -> None:
    events = tape({"layers": 3, "model_type": "llama", "steps": 3}, False)
    signed = np.where(events.action == Action.ALLOC, events.bytes, -events.bytes)
    ends = [
        int(signed[: np.flatnonzero(events.phase == events.phases.index(f"{step}/optimizer"))[-1] + 1].sum())
        for step in (0, 1, 2)
    ]
    assert ends[1] == ends[2] == ends[0]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_are_named(steps: int) -> None:
    events = tape({"layers": 2, "model_type": "llama", "steps": steps}, False)
    assert events.phases == (
        "load",
        *(f"{step}/{phase}" for step in range(steps) for phase in ("forward", "backward", "optimizer")),
    )
