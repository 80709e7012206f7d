"""flash_attention_2: what it refuses, what it needs beside sdpa's kernel, and what padding changes. Recordings hold
every event of it.
"""

from __future__ import annotations

import pytest

from memsim.api import simulate
from memsim.errors import InputError, Unsupported
from memsim.models.common.flash_attention import HALF
from memsim.run.job import Run
from memsim.simulation.build import model_of

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


def run(**keys: object) -> Run:
    return Run(
        **{"model": SMALL, "attention": "flash_attention_2", "steps": 1, "batch": {"size": 2, "sequence": 64}, **keys}
    )


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"precision": "fp32"},
            "attention: flash_attention_2 does not run in fp32 .FlashAttention only support fp16 and bf16 data type.; "
            "precision bf16",
        ),
        (
            {"sm": 75},
            "attention: flash_attention_2 does not run on sm 75 .FlashAttention only supports Ampere GPUs or newer.; "
            "sdpa does",
        ),
        (
            {"model": {**SMALL, "head_dim": 264}},
            "attention: flash_attention_2 takes heads of at most 256 elements, not 264; sdpa takes them",
        ),
        (
            {"batch": {"size": 2, "sequence": 7, "padding": 0.9}},
            "batch.padding: 0.9 of 7 tokens leaves none for flash_attention_2; a smaller share does",
        ),
    ],
)
def test_what_flash_attn_refuses_is_refused(keys: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        model_of(run(**keys))


def test_an_older_stack_is_not_held() -> None:
    with pytest.raises(
        Unsupported, match=r"attention: flash_attention_2 with stack hf-4\.48 is not supported yet; sdpa, " r"eager are"
    ):
        model_of(run(stack="hf-4.48"))


def test_a_family_whose_recordings_are_not_held_is_refused() -> None:
    with pytest.raises(
        Unsupported,
        match="attention: flash_attention_2 with model_type exaone4 is not supported yet; sdpa and eager are",
    ):
        model_of(run(model={**SMALL, "model_type": "exaone4"}))


def test_gemma2_runs_with_it() -> None:
    gemma = {**SMALL, "model_type": "gemma2", "head_dim": 32}
    assert simulate(run(model=gemma)).peak_allocated > 0
    with pytest.raises(
        InputError,
        match="attention: sdpa does not run with gemma2, whose logits are soft-capped; eager and flash_attention_2 do",
    ):
        model_of(run(model=gemma, attention="sdpa"))


def kinds(**keys: object) -> list[str]:
    return [op.kind for op in model_of(run(**keys)).layer_graphs[0].operators]


def test_padding_is_taken_out_and_put_back() -> None:
    assert "flash_attn" in kinds() and "nonzero" not in kinds()
    padded = kinds(batch={"size": 2, "sequence": 64, "padding": 0.1})
    assert padded.count("index") == 3 and padded.index("nonzero") < padded.index("flash_attn_varlen") < padded.index(
        "put_rows"
    )


def test_only_a_batch_of_one_is_asked_whether_it_is_packed() -> None:
    assert "reduce_all" in kinds(batch={"size": 1, "sequence": 64})
    assert "reduce_all" not in kinds() and "reduce_all" not in kinds(batch={"size": 1, "sequence": 1})


def test_heads_are_cast_under_autocast_and_padded_to_eights() -> None:
    specs = {
        op.kind: op.inputs
        for op in model_of(run(precision="amp-bf16", model={**SMALL, "head_dim": 20})).layer_graphs[0].operators
    }
    assert [spec.dtype for spec in specs["flash_attn"]] == ["bf16"] * 6
    assert [spec.shape[-1] for spec in specs["flash_attn"]] == [20] * 3 + [24] * 3
    assert set(HALF) == {"bf16", "fp16"}


def test_selective_checkpoints_keep_its_result() -> None:
    full, selective = (simulate(run(checkpointing=how)).steps[-1].peak_after_forward for how in ("full", "selective"))
    assert selective > full
