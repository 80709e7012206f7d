"""BERT, ViT and T5: their sizes, their batches, and what of a run does not go with them."""

from __future__ import annotations

import numpy as np
import pytest

from memsim import Run
from memsim.api import simulate
from memsim.errors import InputError, Unsupported
from memsim.schedule.optimizers.torch_optim import Optimizer
from memsim.schedule.plan import Plan
from memsim.schedule.recording import alike_layers, record
from memsim.schedule.tile import repeats_of
from memsim.simulation.build import model_of
from memsim.simulation.device import platform_of
from memsim.tape import Action, Tape

BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "vocab_size": 500,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": 9,
    "num_decoder_layers": 8,
    "num_heads": 4,
    "vocab_size": 500,
}
CLASSES = {**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 3}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bert-base-uncased", 109_514_298),
        ("bert-large-uncased", 335_174_458),
        ("vit-base-patch16-224", 86_567_656),
        ("vit-large-patch16-224", 304_326_632),
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-3b", 2_851_598_336),
    ],
)
def test_counts_are_those_published(name: str, parameters: int) -> None:
    """As the models' cards and transformers count them."""
    assert model_of(Run(model=name)).count() == parameters


def test_a_head_of_classes_takes_the_place_of_the_masked_lm() -> None:
    named, plain = model_of(Run(model=CLASSES)), model_of(Run(model=BERT))
    assert {p.name for p in named.after} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert any(p.name == "cls.predictions.bias" for p in plain.after)
    assert [spec.shape for spec in named.outer.inputs.values()] == [(1, 512), (1,)]


def test_peft_trains_the_classifier_as_a_whole() -> None:
    model = model_of(Run(model=CLASSES, method={"kind": "lora", "targets": ["query"]}))
    assert [p.name for p in model.after if p.trainable] == [
        "classifier.modules_to_save.weight",
        "classifier.modules_to_save.bias",
    ]


def test_all_linear_takes_what_is_not_the_output_embeddings() -> None:
    adapted = [p.name for p in model_of(Run(model=BERT, method={"kind": "lora"})).after if p.adapter]
    assert adapted == ["cls.predictions.transform.dense.lora_A.weight", "cls.predictions.transform.dense.lora_B.weight"]


def test_wo_is_not_quantized() -> None:
    rows = [
        p for kind in model_of(Run(model=T5, method={"kind": "qlora"})).layers for p in kind if p.module == "linear"
    ]
    assert {p.quantized for p in rows if ".wo." in p.name} == {""}
    assert {p.quantized for p in rows if ".wo." not in p.name} == {"nf4-double"}


def test_an_image_has_its_own_number_of_tokens() -> None:
    one, other = (simulate(Run(model=VIT, batch={"size": 2, "sequence": length}, steps=1)) for length in (7, 512))
    assert one.tape.bytes.tolist() == other.tape.bytes.tolist()
    assert one.about.tokens == 2 * 17
    assert dict(one.about.facts)["batch"] == "2 × 17 tokens" and "cuDNN" in dict(one.about.facts)["approximate"]


def test_a_decoder_gets_as_many_tokens_as_its_encoder_unless_told() -> None:
    plain, told, shorter = (
        simulate(Run(model=T5, batch={"sequence": 64, **target}, steps=1))
        for target in ({}, {"target": 64}, {"target": 16})
    )
    assert plain.tape.bytes.tolist() == told.tape.bytes.tolist()
    assert shorter.peak_requested < plain.peak_requested and shorter.about.tokens == 80
    assert dict(plain.about.facts)["layers"] == "encoder 0 to 8, decoder 9 to 16"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"model": BERT, "batch": {"target": 4}},
            "batch.target: 4 tokens of a decoder go with an encoder-decoder (t5), not with model_type bert",
        ),
        (
            {"model": BERT, "batch": {"sequence": 513}},
            "batch.sequence: 513 tokens are more than the 512 positions that bert has",
        ),
        (
            {"model": {**BERT, "tie_word_embeddings": False}},
            "model.tie_word_embeddings: False is not supported yet; True is",
        ),
        (
            {"model": {**BERT, "architectures": ["BertForQuestionAnswering"]}},
            "model.architectures: BertForQuestionAnswering is not supported yet; ",
        ),
        (
            {"model": {**CLASSES, "num_labels": 1}},
            "model.num_labels: 1 is not supported yet, as it asks for another loss; 2 and more are",
        ),
        ({"model": {**BERT, "hidden_act": "mish"}}, "model.hidden_act: mish is not supported yet; gelu_new, "),
        ({"model": VIT, "batch": {"padding": 0.1}}, "batch.padding: vit takes images, which are not padded; 0 is"),
        (
            {"model": {**VIT, "patch_size": 64}},
            "model.patch_size: a patch of 64 × 64 is larger than an image of 32 × 32",
        ),
        ({"model": {**VIT, "image_size": [32]}}, "model.image_size: [32] is neither a positive whole number nor two"),
        (
            {"model": T5, "checkpointing": "sqrt"},
            "checkpointing: sqrt with model_type t5 is not supported yet; none, full and selective are",
        ),
        (
            {"model": T5, "train": {"only": ["lm_head"]}},
            "train.only: 'lm_head' matches no parameter; names are such as shared.weight and decoder.layers.",
        ),
        (
            {"model": T5, "method": {"kind": "lora", "targets": ["shared"]}},
            "method.targets: embeddings of t5 are not supported yet; its linear modules are",
        ),
        (
            {"model": {**T5, "feed_forward_proj": "twice-gelu"}},
            "model.feed_forward_proj: 'twice-gelu' is neither an activation nor gated-ACTIVATION",
        ),
        ({"model": T5, "stack": "hf-4.48"}, "model_type: t5 with stack hf-4.48 is not supported yet; llama, "),
        (
            {"model": CLASSES, "method": {"kind": "qlora", "modules_to_save": ["query"]}},
            "method.modules_to_save: attention.self.query is quantized, and cannot train; classifier, ",
        ),
    ],
)
def test_what_is_refused(data: dict[str, object], line: str) -> None:
    with pytest.raises((InputError, Unsupported)) as error:
        model_of(Run(**data))
    assert str(error.value).startswith(line)


def test_a_budget_is_refused_for_a_decoder_beside_an_encoder() -> None:
    with pytest.raises(
        Unsupported,
        match=r"checkpointing: .*budget.* with model_type t5 is not supported yet; none, full and " r"selective are",
    ):
        simulate(Run(model=T5, checkpointing={"budget": "1GiB"}))


@pytest.mark.parametrize("model", [BERT, VIT, T5, {**T5, "num_layers": 1}])
@pytest.mark.parametrize(
    "more",
    [{}, {"checkpointing": "full", "method": {"kind": "lora"}}, {"method": {"kind": "qlora"}, "checkpointing": "full"}],
)
def test_tiled_equals_executed(model: dict[str, object], more: dict[str, object]) -> None:
    run = Run(model=model, batch={"size": 2, "sequence": 48}, **more)
    kept, repeats = repeats_of(*alike_layers(model_of(run)))
    assert repeats and len(kept) < len(model_of(run).pattern)
    tiled, whole = (
        record(model_of(run), Plan(3, 1, None, Optimizer("adamw")), platform_of(run), whole=flag)
        for flag in (False, True)
    )
    assert len(tiled) == len(whole)
    for name in ("action", "bytes", "layer", "category"):
        assert np.array_equal(getattr(tiled, name), getattr(whole, name)), name
    assert np.array_equal(in_order(tiled), in_order(whole))


def in_order(tape: Tape) -> np.ndarray:
    """Storages numbered by their first allocation."""
    number = np.full(tape.storages, -1)
    made = tape.storage[tape.action == Action.ALLOC]
    number[made] = np.arange(len(made))
    return number[tape.storage]
