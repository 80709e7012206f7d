"""The catalogue's data is complete and plausible; a wrong digit in a table is seen by nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim import catalog
from memsim.run.job import Run

# Memory in GiB by the data sheet; the least that PyTorch was seen to report of it, None where it was not seen; and
# streaming multiprocessors as data sheets and architecture white papers state them, which decide how much scratch
# memory attention and reductions have.
DEVICES: dict[str, tuple[int, float | None, int | None]] = {
    "v100-16gb": (16, 15.77, 80),
    "v100-32gb": (32, 31.75, 80),
    "t4": (16, 14.75, 40),
    "rtx-3080": (10, 9.78, 68),
    "rtx-3060": (12, 11.75, 28),
    "rtx-3090": (24, 23.64, 82),
    "rtx-4070-ti-super": (16, None, 66),
    "rtx-4080": (16, None, 76),
    "rtx-4090": (24, 23.64, 128),
    "rtx-5070-ti": (16, None, 70),
    "rtx-5080": (16, None, 84),
    "rtx-5090": (32, 31.36, 170),
    "a10g": (24, 22.03, 80),
    "a10": (24, 22.06, 72),
    "a5000": (24, 23.64, 64),
    "l4": (24, 22.03, 58),
    "a6000": (48, 47.54, 84),
    "l40s": (48, 44.34, 142),
    "l20": (48, 44.53, 92),
    "rtx-pro-6000": (96, 94.97, 188),
    "a100-40gb": (40, 39.39, 108),
    "a100-80gb": (80, 79.10, 108),
    "a800": (80, 79.33, 108),
    "h100": (80, 79.10, 132),
    "h800": (80, None, 132),
    "h20": (96, 94.99, 78),
    "gh200": (96, None, 132),
    "h200": (141, 139.8, 132),
    "b200": (180, 178.35, 148),
    "gb200": (186, None, 152),
    "b300": (270, None, 148),
    "mi300x": (192, None, 304),
    "mi325x": (256, None, 304),
    "ascend-910b": (64, 60.96, None),
}
MEMORY_ALONE = ("mi300x", "mi325x", "ascend-910b")


def test_every_device_is_there_with_its_memory_and_processors() -> None:
    listed = catalog.devices()
    assert list(listed) == list(DEVICES)
    for name, (memory, total, processors) in DEVICES.items():
        device = listed[name]
        assert (device.memory / 2**30, device.processors) == (memory, processors), name
        if total is None:
            assert device.total is None
        else:  # in whole MiB, and never more than was seen
            assert device.total is not None and device.total % 2**20 == 0
            assert total - 2**-10 < device.total / 2**30 <= total < memory


def test_the_allocator_has_what_pytorch_sees_less_the_context() -> None:
    for device in catalog.devices().values():
        assert device.context == 666 * 2**20, "0.65 GiB, the upper end of what was seen, in whole MiB"
        assert device.usable == device.reported - device.context
        assert device.reported == (device.total or int(0.97 * device.memory))
        assert set(device.sources) == {"total", "context"} and all(device.sources.values())
        assert ("seen" in device.sources["total"]) == (device.total is None)
    listed = catalog.devices()
    assert listed["rtx-4090"].usable == (24207 - 666) * 2**20
    assert listed["rtx-4090"].counted == "the 23.64 GiB that PyTorch sees, less 0.65 GiB of CUDA context"
    assert listed["rtx-5080"].counted == (
        "about 15.52 GiB (the data sheet's 16 GiB less 3 %), less 0.65 GiB of CUDA context"
    )
    assert listed["mi300x"].counted == "about 186.24 GiB (the data sheet's 192 GiB less 3 %), less 0.65 GiB of context"


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "ascend-910b"])
def test_a_device_is_plausible(name: str) -> None:
    device = catalog.devices()[name]
    assert device.name == name and device.label and device.datasheet and device.title
    assert 8e12 < device.flops["fp32"] < 2e14 < 20 * device.flops["fp16"]
    assert device.memory_bandwidth is not None and 2e11 < device.memory_bandwidth <= 8e12
    rates = [device.flops[kind] for kind in ("fp32", "tf32", "bf16", "fp8", "fp4") if kind in device.flops]
    assert rates == sorted(rates), "fewer bits are never slower"
    if "bf16" in device.flops:
        assert device.flops["bf16"] == device.flops["fp16"]
    if "int8" in device.flops:
        assert 1.9 < device.flops["int8"] / device.flops["fp16"] < 4.1
    assert device.pcie is not None and device.pcie.bandwidth in (16e9, 32e9, 64e9, 128e9, 225e9, 450e9)
    assert device.link is None or device.pcie.bandwidth <= device.link.bandwidth <= 9e11
    assert (device.sm is None) == (name in MEMORY_ALONE) and (device.sm is None or 70 <= device.sm <= 120)


def test_of_some_devices_the_memory_alone_is_known() -> None:
    device = catalog.devices()["ascend-910b"]
    assert (device.sm, device.processors, device.memory_bandwidth, device.pcie) == (None, None, None, None)
    assert dict(device.flops) == {}


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
