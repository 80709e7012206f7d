"""Models have the parameters that transformers and PEFT count, and the bytes that loading them took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim.run import Run
from memsim.simulation import model_of, simulate
from memsim.validate import run_of

SHIPPED = sorted((Path(__file__).parents[2] / "traces").glob("*/*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_counts_are_those_recorded(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    model = model_of(Run.load(run_of(data)))
    assert model.count() == data["parameters"]
    assert model.count(trainable=True) == data["trainable_parameters"]


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-full", "qwen3-8b-lora8", "mistral-7b-lora8"])
def test_loading_takes_what_was_recorded(name: str) -> None:
    data = json.loads((SHIPPED[0].parents[1] / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    assert simulate(Run.load(run_of(data))).loaded_allocated == data["loaded_allocated"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("llama3.2-1b", 1_235_814_400),
        ("mistral-7b", 7_248_023_552),
        ("llama3.1-8b", 8_030_261_248),
        ("qwen2.5-72b", 72_706_203_648),
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v2", 235_741_434_880),
        ("deepseek-v3", 671_026_404_352),
    ],
)
def test_counts_are_those_published(name: str, parameters: int) -> None:
    """As their publishers count them (mistral-7b is v0.3, with 32,768 tokens)."""
    assert model_of(Run(model=name)).count() == parameters
