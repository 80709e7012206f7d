"""The cheapest checkpointing that fits: it fits, nothing fixed that fits is cheaper, and its bound holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from memsim.api import simulate
from memsim.cli import entry as cli
from memsim.errors import InputError, Unreachable
from memsim.run.job import Run
from memsim.search.budget import Search, find, requested_around_loss, with_strategy

MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


def run_within(budget: str, **more: object) -> Run:
    return Run(
        **{
            "model": MODEL,
            "method": {"kind": "lora"},
            "batch": {"size": 4, "sequence": 512},
            "checkpointing": {"budget": budget},
            "steps": 2,
        }
        | more
    )


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    return {
        strategy: simulate(with_strategy(run_within("1GiB"), strategy)).peak_reserved
        for strategy in ("none", "selective", "megatron", "full", "sqrt")
    }


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 1), st.booleans())
def test_it_fits_and_no_fixed_strategy_that_fits_is_cheaper(share: float, lora: bool) -> None:
    more = {"method": {"kind": "lora" if lora else "full"}}
    of = {
        s: simulate(with_strategy(run_within("1GiB", **more), s)).peak_reserved
        for s in ("none", "selective", "megatron", "full")
    }
    budget = int(of["full"] + share * (of["none"] - of["full"]))
    run = run_within(f"{budget}B", **more)
    found = find(run)
    assert found.timeline.peak_reserved <= budget
    assert found.bound <= found.seconds * (1 + 1e-9)
    search = Search(run, budget)
    for strategy in ("none", "selective", "megatron", "full", {"every": 2}, {"first": 3}, {"first": 6}):
        if simulate(with_strategy(run, strategy)).peak_reserved <= budget:
            assert found.seconds <= search.seconds(strategy) * (1 + 1e-9), strategy


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.sampled_from(["bf16", "fp32", "amp-bf16"]),
    st.sampled_from(["lora", "full"]),
)
def test_no_plan_holds_less_than_the_sum_over_its_layers(which: list[int], precision: str, method: str) -> None:
    strategies = ["none", "full", "selective", {"save": ["attention", "mul"]}]
    run = run_within("1GiB", precision=precision, method={"kind": method})
    plan = {"plan": [[1, strategies[i]] for i in which]}
    search = Search(run, 2**30)
    least = search.base() + sum(choice.kept for choice in search.of_layers(plan))
    assert least <= requested_around_loss(simulate(with_strategy(run, plan)))


def test_the_prices_are_those_of_the_time_estimate() -> None:
    run = run_within("1GiB")
    search = Search(run, 2**30)
    for strategy in ("full", "selective", "megatron", {"first": 3}, {"save": ["matmul", "mul"]}):
        time = simulate(with_strategy(run, strategy)).step_time
        assert time is not None and search.seconds(strategy) == pytest.approx(time.recomputation)


def test_where_everything_fits_nothing_is_recomputed(peaks: dict[str, int]) -> None:
    found = find(run_within(f"{peaks['none']}B"))
    assert found.strategy == "none" and found.seconds == found.bound == 0


def test_where_nothing_fits_it_says_what_could_be_reached() -> None:
    with pytest.raises(
        Unreachable,
        match=r"no strategy fits 0.098 GiB; the least reachable peak is \d+\.\d+ GiB, with .*, held there by "
        r".* GiB",
    ):
        find(run_within("100MiB", model={**MODEL, "vocab_size": 50_000}))


def test_the_report_names_what_was_asked_and_what_was_found(peaks: dict[str, int]) -> None:
    run = run_within(f"{(peaks['none'] + peaks['full']) // 2}B")
    timeline = simulate(run)
    facts = dict(timeline.about.facts)
    assert facts["checkpointing"].startswith("{budget: ") and "found" in facts
    assert timeline.about.run == run.plain()


def test_more_than_the_device_has() -> None:
    with pytest.raises(InputError, match=r"checkpointing.budget: 100.0 GiB is more than the device's 80.00 GiB"):
        find(run_within("100GiB"))


def test_more_than_a_named_device_has_says_what_was_counted() -> None:
    reason = (
        r"checkpointing.budget: 24.00 GiB is more than the device's 22.99 GiB \(the 23.64 GiB that PyTorch sees, less "
        r"0.65 GiB of CUDA context\)"
    )
    with pytest.raises(InputError, match=reason):
        find(Run(model="qwen2.5-0.5b", device="rtx-4090", checkpointing={"budget": "24GiB"}))


def test_the_command_line_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "qwen2.5-0.5b", "--set", "checkpointing={budget: 1GiB}"]) == 1
    assert "no strategy fits 1.00 GiB" in capsys.readouterr().err
