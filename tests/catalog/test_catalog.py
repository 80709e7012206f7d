"""The catalogue's data is complete and plausible; a wrong digit in a table is seen by nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim import catalog
from memsim.run.job import Run

ISSUE = {
    "rtx-3090": 24,
    "rtx-4090": 24,
    "rtx-5090": 32,
    "a10g": 24,
    "l4": 24,
    "l40s": 48,
    "a6000": 48,
    "v100-16gb": 16,
    "v100-32gb": 32,
    "a100-40gb": 40,
    "a100-80gb": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
    "mi300x": 192,
}


# As data sheets and architecture white papers state them; scratch memory of attention and reductions depends on it.
PROCESSORS = {
    "rtx-3090": 82,
    "rtx-4090": 128,
    "rtx-5090": 170,
    "a10g": 80,
    "l4": 58,
    "l40s": 142,
    "a6000": 84,
    "v100-16gb": 80,
    "v100-32gb": 80,
    "a100-40gb": 108,
    "a100-80gb": 108,
    "h100": 132,
    "h200": 132,
    "b200": 148,
    "mi300x": 304,
}


def test_every_device_has_its_processors() -> None:
    assert {name: device.processors for name, device in catalog.devices().items()} == PROCESSORS


def test_every_device_is_there_with_its_memory() -> None:
    assert {name: device.memory / 2**30 for name, device in catalog.devices().items()} == ISSUE


@pytest.mark.parametrize("name", ISSUE)
def test_a_device_is_plausible(name: str) -> None:
    device = catalog.devices()[name]
    assert device.name == name and device.label and device.datasheet and device.title
    assert 1e13 < device.flops["fp32"] < 2e14 < 20 * device.flops["fp16"]
    assert 2e11 < device.memory_bandwidth <= 8e12
    rates = [device.flops[kind] for kind in ("fp32", "tf32", "bf16", "fp8", "fp4") if kind in device.flops]
    assert rates == sorted(rates), "fewer bits are never slower"
    if "bf16" in device.flops:
        assert device.flops["bf16"] == device.flops["fp16"]
    assert device.pcie.bandwidth in (16e9, 32e9, 64e9)
    assert device.link is None or device.pcie.bandwidth < device.link.bandwidth <= 9e11
    assert (device.sm is None) == (name == "mi300x") and (device.sm is None or 70 <= device.sm <= 120)


@pytest.mark.parametrize("name", catalog.models())
def test_a_model_is_a_valid_run(name: str) -> None:
    config = Run(model=name).config
    if config["model_type"] == "falcon":
        assert {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"} <= set(config)
    elif config["model_type"] == "opt":
        assert {"hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "vocab_size"} <= set(config)
    elif config["model_type"] not in ("gpt2", "bloom", "vit", "t5"):
        assert {
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "tie_word_embeddings",
        } <= set(config)


# Parameters in billions as the models' cards state them; a digit that is off in a size shows here.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-72b", 72.7),
        ("qwen2-7b", 7.62),
        ("qwen3-8b", 8.19),
        ("llama2-70b", 68.98),
        ("llama3-8b", 8.03),
        ("llama3.1-405b", 405.85),
        ("tinyllama-1.1b", 1.10),
        ("smollm2-135m", 0.1345),
        ("smollm2-360m", 0.3618),
        ("smollm2-1.7b", 1.711),
        ("mistral-7b-v0.1", 7.24),
        ("mistral-nemo-12b", 12.25),
        ("mistral-small-24b", 23.57),
    ],
)
def test_parameters_add_up(name: str, billions: float) -> None:
    config = {key: value for key, value in catalog.models()[name].items() if isinstance(value, int)}
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    head = config.get("head_dim", hidden // heads)
    attention = 2 * hidden * head * (heads + config["num_key_value_heads"])
    embeddings = hidden * config["vocab_size"] * (1 if config["tie_word_embeddings"] else 2)
    total = layers * (attention + 3 * hidden * config["intermediate_size"]) + embeddings
    assert total / 1e9 == pytest.approx(billions, rel=0.005)


def test_models_are_those_of_the_oracle(shared: Path) -> None:
    for name, fields in json.loads((shared / "oracle" / "models.json").read_text()).items():
        assert dict(catalog.models()[name]) == fields, name


def test_nobody_can_change_the_catalogue() -> None:
    with pytest.raises(TypeError):
        catalog.models()["gpt2"]["n_layer"] = 1  # type: ignore[index]


def test_examples_ship() -> None:
    assert {"qwen2.5-72b-lora", "qwen2.5-7b-lora", "llama3.1-8b-full"} <= set(catalog.examples())
    assert not set(catalog.examples()) & set(catalog.models()), "a name means one thing"
