"""Models have the parameters that transformers and PEFT count, and the bytes that loading them took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim.api import simulate
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.validation.recorded import run_of

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
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
        ("glm-4-9b", 9_399_951_360),
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
        ("phi4-mini", 3_836_021_760),
        ("phi-2", 2_779_683_840),
        ("olmo-7b", 6_888_095_744),
        ("opt-125m", 125_239_296),
        ("opt-1.3b", 1_315_758_080),
        ("opt-6.7b", 6_658_473_984),
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v2", 235_741_434_880),
        ("deepseek-v3", 671_026_404_352),
    ],
)
def test_counts_are_those_published(name: str, parameters: int) -> None:
    """As their publishers count them (mistral-7b is v0.3, with 32,768 tokens)."""
    assert model_of(Run(model=name, attention="eager")).count() == parameters
