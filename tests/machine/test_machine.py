"""Reference counts of the machine: never below zero, never raised from zero, and what is left belongs to the job."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from memsim.machine.kernels import platform_for
from memsim.machine.storages import Machine
from memsim.run.job import Run
from memsim.schedule.optimizers.torch_optim import Optimizer
from memsim.schedule.plan import Plan
from memsim.schedule.training import Training
from memsim.simulation.build import model_of
from memsim.tape import Action, Category

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}

runs = st.fixed_dictionaries(
    {
        "model": st.builds(
            lambda kind, layers: {**SMALL, "model_type": kind, "num_hidden_layers": layers},
            st.sampled_from(["llama", "qwen2", "qwen3"]),
            st.integers(1, 4),
        ),
        "batch": st.fixed_dictionaries(
            {"size": st.integers(1, 3), "sequence": st.sampled_from([1, 7, 333]), "accumulation": st.integers(1, 3)}
        ),
        "method": st.sampled_from(
            [
                {"kind": "full"},
                {"kind": "lora", "rank": 4},
                {"kind": "lora", "rank": 1, "targets": ["v_proj"], "dropout": 0.1},
            ]
        ),
        "precision": st.sampled_from(["bf16", "fp16", "fp32"]),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "checkpointing": st.sampled_from(["none", "full"]),
        "optimizer": st.sampled_from(
            [
                "adamw",
                "adamw-fused",
                "adamw-for-loop",
                "sgd",
                "sgd-momentum",
                "adafactor",
                "lion-8bit",
                "muon",
                "adadelta",
            ]
        ),
        "optimizer_in_backward": st.booleans(),
        "clip_grad_norm": st.sampled_from([None, 1.0]),
        "steps": st.just(2),
    }
)


class Checked(Machine):
    """Refuses to touch a storage that nothing refers to."""

    def retain(self, storage: int) -> None:
        assert self.references[storage] > 0
        super().retain(storage)

    def release(self, *storages: int) -> None:
        for storage in storages:
            assert self.references[storage] > 0
            super().release(storage)


@settings(max_examples=40, deadline=None)
@given(runs)
def test_references(drawn: dict[str, object]) -> None:
    if drawn["optimizer_in_backward"]:
        drawn |= {"batch": {**drawn["batch"], "accumulation": 1}, "clip_grad_norm": None}
    run = Run(**drawn)
    model, machine = model_of(run), Checked(platform_for(run.sm))
    plan = Plan(
        run.steps,
        run.batch.accumulation,
        run.clip_grad_norm,
        Optimizer(run.optimizer),
        in_backward=run.optimizer_in_backward,
    )
    training = Training(model, plan, machine, model)
    training.load()
    loaded = {s for s, count in enumerate(machine.references) if count}
    for step in range(run.steps):
        training.step(step)
        left = {s for s, count in enumerate(machine.references) if count}
        assert loaded <= left
        assert {machine.category[s] for s in left - loaded} <= {Category.OPTIMIZER_STATE}


def test_the_last_reference_frees_and_no_bytes_ask_for_nothing() -> None:
    machine = Machine(platform_for(80))
    machine.enter("load")
    machine.at("x")
    a, empty = machine.alloc(10), machine.alloc(0)
    machine.retain(a)
    machine.release(a, empty)
    assert machine.actions == [Action.ALLOC]
    machine.release(a)
    assert (machine.actions, machine.events) == ([Action.ALLOC, Action.FREE], [a, a])


def test_scratch_is_freed_in_reverse() -> None:
    machine = Machine(platform_for(80))
    machine.enter("load")
    machine.at("x")
    machine.scratch(1, 2, 3)
    assert [machine.bytes[s] for s in machine.events] == [1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(("shape", "copies"), [((6,), True), ((3, 2), False)])
def test_reshaping_a_gradient_copies_where_its_layout_asks_for_it(shape: tuple[int, ...], copies: bool) -> None:
    machine = Machine(platform_for(80))
    machine.enter("load")
    machine.at("x")
    grad = machine.grad((3, 2), (1, 3), "bf16")
    again = machine.reshape(grad, shape)
    assert (again.storage != grad.storage) == copies
    assert again.view != copies
