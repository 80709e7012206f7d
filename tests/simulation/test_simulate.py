"""simulate(): a pure function from Run to Timeline, with the keys of a recording."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from memsim.api import simulate
from memsim.run.job import Run
from memsim.simulation.device import platform_of

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "vocab_size": 500,
}
RECORDED = Path(__file__).parents[2] / "traces" / "golden" / "qwen2.5-0.5b-full.json"


def test_it_gives_the_same_twice() -> None:
    run = Run(model=SMALL, checkpointing="full", steps=2)
    a, b = simulate(run), simulate(run)
    for name in ("action", "storage", "bytes", "layer", "category", "operator"):
        assert np.array_equal(getattr(a.tape, name), getattr(b.tape, name)), name
    assert np.array_equal(a.answer.address, b.answer.address)
    assert a.to_json() == b.to_json()


def test_the_keys_are_a_recordings() -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    simulated = simulate(Run(model=SMALL, steps=2)).to_json()
    assert set(recorded["steps"][0]) == set(simulated["steps"][0])
    assert {"run", "parameters", "trainable_parameters", "loaded_allocated", "steps", "oom"} <= set(simulated)


def test_requested_is_at_most_allocated_is_at_most_reserved() -> None:
    answer = simulate(Run(model=SMALL, steps=2)).answer
    assert (answer.requested <= answer.allocated).all()
    assert (answer.allocated <= answer.reserved).all()


def test_out_of_memory_is_told_with_what_would_have_been_needed() -> None:
    enough = simulate(Run(model="qwen2.5-0.5b", steps=1))
    short = simulate(Run(model="qwen2.5-0.5b", steps=1, device_memory_gib=2))
    assert not enough.out_of_memory and enough.to_json()["oom"] is None
    assert short.out_of_memory and "out of memory" in str(short.to_json()["oom"])
    assert short.steps == () and short.peak_reserved == enough.peak_reserved


def test_a_longer_run_repeats_its_second_step() -> None:
    steps = simulate(Run(model=SMALL, steps=5)).to_json()["steps"]
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    assert len({(step["peak_requested"], step["end_allocated"]) for step in steps[1:]}) == 1


def test_a_named_device_has_its_own_multiprocessors() -> None:
    assert platform_of(Run(model="llama3.2-1b", device="l4")).processors == 58
    assert platform_of(Run(model="llama3.2-1b", sm=89)).processors == 128
    assert platform_of(Run(model="llama3.2-1b", device="l4", sm=80)).processors == 108
