"""QLoRA: what is quantized, what is kept, and when bitsandbytes takes its fused kernel."""

from __future__ import annotations

import pytest

from memsim import Run
from memsim.api import simulate
from memsim.errors import Unsupported
from memsim.operators.gemm4bit import is_fused
from memsim.simulation.build import model_of
from memsim.tape import Action


def model(**method: object):
    return model_of(Run(model="llama3.2-1b", method={"kind": "qlora", **method}))


def test_linear_modules_are_packed_and_the_rest_is_cast() -> None:
    rows = {p.name: p for p in (*model().before, *model().layers[0], *model().after)}
    assert {p.quantized for name, p in rows.items() if name.endswith("_proj.weight")} == {"nf4-double"}
    assert {
        (p.dtype, p.created_dtype) for name, p in rows.items() if "norm" in name or name == "embed_tokens.weight"
    } == {("fp32", "bf16")}
    assert {p.quantized for p in model(double_quant=False).layers[0] if p.quantized} == {"nf4"}


@pytest.mark.parametrize(("casts", "dtype"), [("peft", "fp32"), ("trl", "bf16"), ("none", "bf16")])
def test_who_casts_the_embeddings(casts: str, dtype: str) -> None:
    assert model(casts=casts).before[0].dtype == dtype


def test_the_whole_weighs_a_quarter() -> None:
    def loaded(kind: str) -> int:
        return simulate(
            Run(model="llama3.1-8b", method={"kind": kind}, batch={"sequence": 64}, steps=1)
        ).loaded_allocated

    linear = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)  # parameters
    head = 2 * 128256 * 4096
    saved = loaded("lora") - loaded("qlora")
    # half a byte for a parameter, a byte of scale for 64 of them; the head and the embeddings have 2 bytes more each
    assert saved == pytest.approx(linear * (2 - 0.5 - 1 / 64) - 2 * head, rel=2e-3)


@pytest.mark.parametrize(
    ("sm", "processors", "m", "n", "k", "expected"),
    [
        (80, 108, 4, 4096, 4096, True),
        (80, 108, 2000, 4096, 4096, False),
        (80, 108, 64, 14336, 4096, True),
        (80, 108, 128, 14336, 4096, False),
        (90, 132, 128, 14336, 4096, False),
        (80, 108, 100, 4096, 4100, False),  # 64 does not divide the input features
        (100, 148, 33, 65536, 4096, False),
    ],
)
def test_the_fused_kernel(sm: int, processors: int, m: int, n: int, k: int, expected: bool) -> None:
    assert is_fused(sm, processors, "bf16", m, n, k, 64) is expected


@pytest.mark.parametrize(
    ("precision", "created"), [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32"), ("amp-bf16", "fp32")]
)
def test_what_is_not_quantized_is_loaded_as_the_precision_says(precision: str, created: str) -> None:
    run = Run(model="llama3.2-1b", method={"kind": "qlora"}, precision=precision, batch={"sequence": 64}, steps=1)
    rows = model_of(run).before
    assert {(p.created_dtype, p.dtype) for p in rows} == {(created, "fp32")}
    assert (simulate(run).tape.action == Action.EMPTY_CACHE).sum() == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"precision": "amp-fp16"},
            "precision: amp-fp16 with method qlora, which computes in bf16, is not supported; bf16 is",
        ),
        (
            {"precision": "fp32", "method": {"kind": "qlora", "casts": "trl"}},
            "method.casts: trl with precision fp32 is not supported; with bf16 it is",
        ),
    ],
)
def test_mixtures_of_precisions_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        model_of(Run(**{"model": "llama3.2-1b", "method": {"kind": "qlora"}, **changes}))
