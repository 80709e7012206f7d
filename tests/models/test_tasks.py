"""Classes of `architectures`: those that are modelled, and every other refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from memsim import Run, catalog
from memsim.errors import InputError, Unsupported
from memsim.models import FAMILIES
from memsim.models.tasks import CLASSES
from memsim.simulation.build import model_of

SMALL: dict[str, dict[str, object]] = yaml.safe_load(
    (Path(__file__).parents[1] / "frozen" / "families.yaml").read_text()
)


def built(model: dict[str, object], strict: bool = False, **more: object) -> int:
    eager = model["model_type"] in ("bloom", "gpt_oss", "gemma2")
    more.setdefault("batch", {"sequence": 64})
    return model_of(Run(model=model, attention="eager" if eager else "sdpa", **more), strict=strict).count()


def test_every_family_has_its_classes() -> None:
    assert set(CLASSES) == set(FAMILIES) and all(CLASSES.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_modelled_may_be_named_and_nothing_else(kind: str) -> None:
    model = {"model_type": kind, **SMALL[kind]}
    usual = built(model)
    assert built({**model, "architectures": [CLASSES[kind][0]]}) == usual
    stem = CLASSES[kind][0].partition("For")[0]
    for name in (f"{stem}Model", f"{stem}ForTokenClassification", f"{stem}ForQuestionAnswering", "EagleForCausalLM"):
        for strict in (False, True):
            with pytest.raises(Unsupported) as caught:
                built({**model, "architectures": [name]}, strict)
            assert str(caught.value) == (
                f"model.architectures: {name} is not supported yet; of model_type {kind} "
                f"{' and '.join(CLASSES[kind])} {'is' if len(CLASSES[kind]) == 1 else 'are'}"
            )


def test_reward_and_classification_models_are_no_causal_ones() -> None:
    """Llama-3.2-1B with a head of classes keeps 13.95 GiB where the head over the vocabulary keeps 25.35."""
    model = {**catalog.models()["llama3.2-1b"], "architectures": ["LlamaForSequenceClassification"]}
    with pytest.raises(
        Unsupported, match=r"^model.architectures: LlamaForSequenceClassification is not supported yet; of model_type "
    ):
        built(model, method={"kind": "lora"}, batch={"size": 8, "sequence": 1024})
    for name in ("Qwen2ForSequenceClassification", "Qwen2ForRewardModel", "Qwen2ForProcessRewardModel", "Qwen2Model"):
        with pytest.raises(Unsupported, match=rf"{name} is not supported yet; of model_type qwen2 Qwen2ForCausalLM is"):
            built({"model_type": "qwen2", **SMALL["qwen2"], "architectures": [name]})


def test_an_unknown_family_is_taken_for_a_llama_with_a_causal_head_alone() -> None:
    model = {"model_type": "foo", **SMALL["llama"]}
    assert built({**model, "architectures": ["FooForCausalLM"]}) == built(model)
    with pytest.raises(Unsupported, match=r"FooForReward is not supported yet; of model_type foo …ForCausalLM is"):
        built({**model, "architectures": ["FooForReward"]})


@pytest.mark.parametrize("given", [3, [3], [["LlamaForCausalLM"]], {"LlamaForCausalLM": 1}])
def test_what_is_no_list_of_names(given: object) -> None:
    with pytest.raises(InputError, match=re.escape(f"model.architectures: {given!r} is not a list of names such as")):
        built({"model_type": "llama", **SMALL["llama"], "architectures": given})
    built({"model_type": "llama", **SMALL["llama"], "architectures": "LlamaForCausalLM"})
    built({"model_type": "llama", **SMALL["llama"], "architectures": None})
