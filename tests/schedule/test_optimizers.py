"""Optimizers: their names, their state, the order in which they work, and what a Run may not combine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from memsim.api import simulate
from memsim.errors import InputError, Unsupported
from memsim.framework.model import Parameter
from memsim.graph.layer_graph import TensorSpec
from memsim.machine.kernels import platform_for
from memsim.machine.storages import Grad, Machine
from memsim.run.job import Run
from memsim.run.optimizer_names import ALIASES, OPTIMIZERS
from memsim.schedule.autograd.engine import Leaf
from memsim.schedule.optimizers.foreach import by_dtype
from memsim.schedule.optimizers.torch_optim import Optimizer, state_bytes
from memsim.tape import Action, Category

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 500,
}
RECORDED = Path(__file__).parents[2] / "traces" / "record" / "optimizers.yaml"


def rows(*parameters: tuple[int, str, tuple[int, ...], str]) -> tuple[Machine, list[tuple[int, Parameter, Leaf]]]:
    """Parameters (layer, name, shape, dtype) with gradients, on a machine."""
    machine = Machine(platform_for(80))
    machine.enter("load")
    machine.at("x")
    made = []
    for layer, name, shape, dtype in parameters:
        p = Parameter(name, shape, dtype)
        leaf = Leaf(machine.alloc(p.nbytes), TensorSpec(0, 0, shape, (), dtype, True))
        leaf.grad = Grad(machine.alloc(p.nbytes), shape, (), dtype)
        made.append((layer, p, leaf))
    return machine, made


def test_every_optimizer_can_be_recorded() -> None:
    assert set(OPTIMIZERS) == set(yaml.safe_load(RECORDED.read_text()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_appears_once(name: str) -> None:
    machine, some = rows(
        (0, "a.weight", (96, 64), "fp32"), (0, "b.weight", (7,), "fp32"), (-1, "embed_tokens.weight", (80, 64), "fp32")
    )
    optimizer, state = Optimizer(name), {}
    optimizer.created(machine, some, state)
    optimizer.step(machine, some, state)
    held = [s for s, count in enumerate(machine.references) if count]
    optimizer.step(machine, some, state)
    assert held == [s for s, count in enumerate(machine.references) if count]
    assert {machine.category[s] for s in held[6:]} <= {Category.OPTIMIZER_STATE}
    optimizer.zero_grad(machine, some)
    assert all(leaf.grad is None for _, _, leaf in some)


def test_muon_takes_matrices_of_layers_and_adapters_before_adamw_takes_the_rest() -> None:
    _, some = rows(
        (-1, "embed_tokens.weight", (80, 64), "bf16"),
        (0, "norm.weight", (64,), "bf16"),
        (0, "up_proj.weight", (96, 64), "bf16"),
        (0, "experts.up", (4, 96, 64), "bf16"),
        (-1, "lm_head.lora_A.weight", (8, 64), "bf16"),
    )
    parts = [(name, [p.name for _, p, _ in part]) for name, part in Optimizer("muon").parts(some)]
    assert parts == [
        ("muon", ["up_proj.weight", "lm_head.lora_A.weight"]),
        ("adamw", ["embed_tokens.weight", "norm.weight", "experts.up"]),
    ]


def test_muon_iterates_on_the_smaller_side() -> None:
    """Five iterations, each with two squares of the smaller dimension, in bf16 whatever the parameter's dtype."""
    for shape in ((96, 64), (64, 96)):
        machine, some = rows((0, "up_proj.weight", shape, "fp32"))
        Optimizer("muon").step(machine, some, {})
        sizes = [machine.bytes[s] for a, s in zip(machine.actions, machine.events, strict=True) if a == Action.ALLOC]
        assert sizes.count(2 * 64 * 64) == 10
        assert sizes.count(2 * 64 * 96) == 6


def test_8bit_state_of_ademamix_holds_two_averages() -> None:
    p = Parameter("x", (64, 256), "bf16")
    assert state_bytes("ademamix-8bit", p) == [4 * 2 * 64, 4 * 64, 2 * 64 * 256, 64 * 256]
    assert state_bytes("ademamix", p) == [4 * 2 * 64 * 256, 4 * 64 * 256]
    assert state_bytes("adamw-8bit", Parameter("x", (4095,), "bf16")) == [4 * 4095] * 2
    assert state_bytes("paged-lion", Parameter("x", (100_000,), "bf16")) == []


def test_groups_come_last_dtype_first_and_lists_live_into_the_next() -> None:
    machine, some = rows((0, "a", (100,), "fp32"), (0, "b", (100,), "bf16"), (0, "c", (50,), "fp32"))
    assert [[p.name for _, p, _ in group] for group in by_dtype(some)] == [["b"], ["a", "c"]]
    optimizer, state = Optimizer("adamw"), {}
    optimizer.step(machine, some, state)
    start = len(machine.actions)
    optimizer.step(machine, some, state)
    step = [
        (machine.actions[i] == Action.ALLOC, machine.bytes[machine.events[i]])
        for i in range(start, len(machine.actions))
    ]
    assert step == [(True, 200), (True, 400), (True, 200), (False, 200), (False, 200), (False, 400)]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "adafactor", "adamw-8bit"])
def test_in_backward_no_gradient_outlives_its_step(name: str) -> None:
    run = Run(model=MODEL, optimizer=name, optimizer_in_backward=True, batch={"sequence": 64}, steps=2)
    tape = simulate(run).tape
    gradients = tape.category == int(Category.GRADIENTS)
    alive = np.cumsum(np.where(gradients, np.where(tape.action == Action.ALLOC, tape.bytes, -tape.bytes), 0))
    ends = [np.flatnonzero(tape.phase == tape.phases.index(f"{step}/backward"))[-1] for step in (0, 1)]
    assert gradients.any() and all(alive[end] == 0 for end in ends)
    assert alive.max() < sum(p.nbytes for p in [Parameter("", (500, 64), "bf16")] * 2)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"batch": {"accumulation": 2}}, "batch.accumulation: 1 works"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm: null works"),
    ],
)
def test_in_backward_refuses_what_needs_every_gradient(keys: dict[str, object], line: str) -> None:
    with pytest.raises(Unsupported, match=f"^optimizer_in_backward: .*{line}$"):
        simulate(Run(model=MODEL, optimizer_in_backward=True, **keys))


def test_an_older_torch_has_no_muon() -> None:
    with pytest.raises(
        Unsupported, match=r"^optimizer: muon with stack hf-4.48 is not supported, as torch 2.6 has " r"none; adamw"
    ):
        simulate(Run(model=MODEL, optimizer="muon", stack="hf-4.48"))


def test_what_bitsandbytes_has_no_kernel_for() -> None:
    with pytest.raises(
        Unsupported,
        match=r"^optimizer: rmsprop-8bit of bitsandbytes has no kernel for bf16 gradients with " r"fp32 state",
    ):
        simulate(Run(model=MODEL, optimizer="rmsprop-8bit"))
    assert simulate(Run(model=MODEL, optimizer="rmsprop-8bit", precision="fp16", steps=1)).steps


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_hugging_face_names(alias: str, name: str) -> None:
    assert name in OPTIMIZERS
    assert Run(model=MODEL, optimizer=alias) == Run(model=MODEL, optimizer=name)


@pytest.mark.parametrize(
    ("word", "hint"), [("adamw_8bits", "adamw_8bit"), ("moun", "muon"), ("paged-lion-4bit", "paged-lion-8bit"), (3, "")]
)
def test_an_optimizer_that_does_not_exist(word: object, hint: str) -> None:
    with pytest.raises(
        InputError, match=f"optimizer: {word!r} is not one of adamw, .*" + (f"did you mean {hint}" if hint else "")
    ):
        Run(model=MODEL, optimizer=word)


def test_paged_state_is_shown_as_memory_of_the_host() -> None:
    fields = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    }
    run = Run(model=fields, optimizer="paged-adamw-8bit", batch={"sequence": 16})
    paged = 2 * (2 * 1000 * 512 + 7 * 512 * 512)  # two bytes a parameter, of all but the norms
    timeline = simulate(run)
    assert timeline.about.paged_state == timeline.to_json()["paged_state"] == paged
    assert "GiB of optimizer state is paged: managed memory, on the host" in timeline.headline()
    assert simulate(Run(model=fields, optimizer="adamw-8bit", batch={"sequence": 16})).about.paged_state == 0
