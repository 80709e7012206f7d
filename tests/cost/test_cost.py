"""The time estimate: a roofline whose parts can be checked by hand, and what a measured step does to it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import memsim
from memsim import catalog
from memsim.api import simulate
from memsim.catalog import devices
from memsim.cost.efficiency import Efficiency
from memsim.cost.roofline import Rates
from memsim.cost.work import Work
from memsim.errors import InputError
from memsim.run.job import Run

A100 = devices()["a100-80gb"]
SMALL = {"model": "qwen2.5-0.5b", "batch": {"size": 2, "sequence": 512}, "device": "a100-80gb", "steps": 2}


def test_the_slowest_of_arithmetic_memory_and_launch_decides() -> None:
    rates = Rates(A100, Efficiency(matmul=0.5, memory=0.5, launch=1e-5))
    assert rates.seconds(Work("matmul", "bf16", 312e12, 1.0)) == pytest.approx(2.0)
    assert rates.seconds(Work("matmul", "bf16", 1.0, 2039e9)) == pytest.approx(2.0)
    assert rates.seconds(Work("vector", "bf16", 1.0, 1.0)) == 1e-5
    assert rates.seconds(Work("matmul", "fp32", 19.5e12, 1.0)) == pytest.approx(2.0)
    assert Rates(A100, Efficiency(matmul=0.5), tf32=True).seconds(Work("matmul", "fp32", 156e12, 1.0)) == pytest.approx(
        2.0
    )


def test_flops_of_a_step_are_six_for_each_parameter_and_token_and_attentions() -> None:
    run = Run(**SMALL)
    time = simulate(run).step_time
    assert time is not None
    layers, hidden, tokens = 24, 896, 1024
    products = 6 * tokens * (24 * (896 * (896 + 128 + 128) + 896 * 896 + 3 * 896 * 4864) + 151936 * 896)
    attention = layers * (4 * 512 * 512 / 2 * hidden * 2) * 3.5  # causal; five products backward for two forward
    assert time.flops == pytest.approx(products + attention, rel=1e-12)
    assert time.total == pytest.approx(time.forward + time.backward + time.optimizer)
    assert time.recomputation == 0


def work_of_layer(kind: str, quantization: str, **keys: object) -> tuple[Work, Work]:
    """Forward and backward work of the first operator of a kind in a quantized layer of qwen2.5-0.5b, q_proj."""
    from memsim.operators import KINDS
    from memsim.simulation.build import model_of

    size = {"batch": {"size": 1, "sequence": 2048}} | keys.pop("run", {})  # type: ignore[operator]
    method = {"kind": "qlora", "quantization": quantization, **keys}
    graph = model_of(Run(**{"model": "qwen2.5-0.5b", "method": method, **size})).layer_graphs[0]
    op = next(op for op in graph.operators if op.kind == kind)
    forward = KINDS[kind].work(op.inputs, op.outputs, op.attrs)
    backward = KINDS[kind].backward_work(op.inputs, op.outputs, op.attrs, op.saved)
    assert forward is not None and backward is not None
    return forward, backward


Q_PROJ = 2.0 * 2048 * 896 * 896  # FLOP


def test_int8_multiplies_in_int8_and_backward_in_the_dtype_of_x() -> None:
    """bitsandbytes: int8_scaled_mm forward, torch.matmul(grad, CB.to(A.dtype)) backward."""
    forward, backward = work_of_layer("linear8bit", "int8")
    assert (forward.unit, forward.dtype, forward.flops) == ("matmul", "int8", Q_PROJ)
    assert (backward.unit, backward.dtype, backward.flops) == ("matmul", "fp32", Q_PROJ), "PEFT casts the norms to fp32"
    tokens, weights = 2048 * 896, 896 * 896
    assert forward.bytes == 12 * tokens + weights + 10 * tokens + 6 * 2 * tokens
    assert backward.bytes == 4 * tokens + 17 * weights + 4 * tokens
    lower = work_of_layer("linear8bit", "int8", casts="none")
    assert [work.dtype for work in lower] == ["int8", "bf16"]
    rates = Rates(A100, Efficiency(matmul=0.5))
    assert rates.seconds(Work("matmul", "int8", 624e12, 1.0)) == pytest.approx(2.0)
    volta = Rates(devices()["v100-16gb"], Efficiency(matmul=0.5))
    assert volta.seconds(Work("matmul", "int8", 15.7e12, 1.0)) == pytest.approx(2.0), "it has no rate for int8"


def test_int8_of_an_inner_width_that_4_does_not_divide_multiplies_what_autocast_casts() -> None:
    config = dict(catalog.models()["qwen2.5-0.5b"]) | {"hidden_size": 898, "head_dim": 64}
    forward, _ = work_of_layer("linear8bit", "int8", run={"model": config})
    assert (forward.unit, forward.dtype) == ("matmul", "bf16")


def test_awq_multiplies_dequantized_weights_in_16_bits() -> None:
    forward, backward = work_of_layer("linear_awq", "awq")
    assert (forward.unit, forward.dtype, forward.flops) == ("matmul", "bf16", Q_PROJ)
    assert (backward.unit, backward.dtype, backward.flops) == ("matmul", "bf16", Q_PROJ)
    tokens, weights = 2048 * 896, 896 * 896
    assert forward.bytes == 2 * tokens + 4.5 * weights + 4 * (tokens + weights) + 2 * tokens
    assert backward.bytes == 2 * tokens + 4.5 * weights + 4 * weights + 4 * weights + 2 * tokens
    few, _ = work_of_layer("linear_awq", "awq", run={"batch": {"size": 1, "sequence": 1023}})
    assert few.dtype == "fp16", "below 1024 rows AutoAWQ multiplies by packed weights"
    assert few.bytes == 2 * 1023 * 896 + weights / 2 + 17 * 2 * 1023 * 896
    product, _ = work_of_layer("mm", "gptq")
    assert (product.unit, product.dtype, product.flops) == ("matmul", "bf16", Q_PROJ)


def test_utilization_follows_from_tokens_a_second_whatever_the_quantization() -> None:
    """The step of a 70B model that took AWQ and int8 45 s, with 0.2 % MFU, where NF4 took 6."""
    size = {"model": "qwen2.5-72b", "batch": {"size": 1, "sequence": 2048}, "device": "a100-80gb", "steps": 1}
    times = {}
    for name in ("nf4", "int8", "gptq", "awq"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            time = simulate(Run(**size, checkpointing="full", method={"kind": "qlora", "quantization": name})).step_time
        assert time is not None and time.peak == 312e12
        times[name] = time
        assert time.mfu / time.tokens_per_second == pytest.approx(time.flops / (2048 * 312e12), rel=1e-12)
    assert len({round(time.flops) for time in times.values()}) == 1, "the model's own products, however stored"
    assert times["awq"].total == pytest.approx(times["nf4"].total, rel=0.1)
    assert times["gptq"].total == pytest.approx(times["nf4"].total, rel=0.1)
    assert times["int8"].forward < times["nf4"].forward < times["int8"].backward / 5, "forward int8, backward fp32"
    unprepared = simulate(
        Run(**size, checkpointing="full", method={"kind": "qlora", "quantization": "int8", "casts": "none"})
    ).step_time
    assert unprepared is not None and unprepared.total < times["nf4"].total


def test_utilization_is_measured_against_the_rate_of_16_bits() -> None:
    for precision in ("bf16", "fp32", "tf32", "fp16", "amp-bf16"):
        time = simulate(Run(**SMALL, precision=precision)).step_time
        assert time is not None and time.peak == 312e12
    volta = Rates(devices()["v100-16gb"])
    assert volta.half == 125e12, "fp16, where there is no bf16"


def test_full_checkpointing_costs_another_forward_of_the_layers() -> None:
    plain, again = (simulate(Run(**SMALL, checkpointing=kind)).step_time for kind in ("none", "full"))
    assert plain is not None and again is not None
    assert again.flops == plain.flops
    assert again.forward == pytest.approx(plain.forward) and again.backward == pytest.approx(plain.backward)
    assert 0.5 * plain.forward < again.recomputation < plain.forward


def test_repeated_layers_and_steps_take_as_long_as_executed_ones() -> None:
    from memsim.schedule.optimizers.torch_optim import Optimizer
    from memsim.schedule.plan import Plan
    from memsim.schedule.recording import record
    from memsim.simulation.build import model_of
    from memsim.simulation.device import platform_of, rates_of

    run = Run(model="qwen2.5-0.5b", checkpointing="full", steps=3)
    plan = Plan(3, 1, 1.0, Optimizer("adamw"), rates_of(run))
    model = model_of(run)
    tiled, whole = (record(model, plan, platform_of(run), whole=whole) for whole in (False, True))
    assert tiled.work is not None and whole.work is not None
    np.testing.assert_allclose(tiled.work, whole.work, rtol=1e-9)


def test_a_measured_step_scales_every_efficiency() -> None:
    run = Run(**SMALL)
    before = simulate(run).step_time
    assert before is not None
    timeline = simulate(run, measured_step=2 * before.total)
    assert timeline.step_time is not None and timeline.about.rates is not None
    assert timeline.step_time.total == pytest.approx(2 * before.total)
    assert timeline.about.rates.efficiency.matmul == pytest.approx(Efficiency.matmul / 2)
    e = timeline.about.rates.efficiency
    again = simulate(
        Run(
            **SMALL,
            efficiency={
                "matmul": e.matmul,
                "attention": e.attention,
                "memory": e.memory,
                "pcie": e.pcie,
                "launch_us": e.launch * 1e6,
            },
        )
    )
    assert again.step_time is not None and again.step_time.total == pytest.approx(2 * before.total)


def test_no_step_is_faster_than_the_data_sheet() -> None:
    with pytest.raises(InputError, match=r"--measured-step: .* is less than A100-80GB can do by its data sheet"):
        simulate(Run(**SMALL), measured_step=1e-6)


def test_time_is_in_the_json_and_the_headline() -> None:
    timeline = memsim.simulate(Run(**SMALL))
    data = timeline.to_json()["time"]
    assert isinstance(data, dict) and data["step"] == pytest.approx(
        data["forward"] + data["backward"] + data["recomputation"] + data["optimizer"]
    )
    assert "A step takes about" in timeline.headline() and "on A100-80GB" in timeline.headline()
    assert timeline.time is not None and (np.diff(timeline.time) >= 0).all()


@pytest.mark.parametrize("key", ["matmul", "memory"])
def test_an_efficiency_is_a_share(key: str) -> None:
    with pytest.raises(InputError, match=rf"efficiency\.{key}: 1\.5 is not a share from above 0 to 1"):
        Run(**SMALL, efficiency={key: 1.5})


def test_a_frame_has_a_row_for_every_event() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    timeline = simulate(Run(**SMALL))
    frame = timeline.to_frame()
    assert len(frame) == timeline.whole.processed
    assert int(frame["reserved"].max()) == timeline.peak_reserved
    assert set(frame["phase"].unique()) == {
        "load",
        *(f"{k}/{kind}" for k in (0, 1) for kind in ("forward", "backward", "optimizer")),
    }
    assert frame["time"].is_monotonic_increasing
