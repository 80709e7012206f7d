"""GPTQ and AWQ: sizes of the buffers, what is refused, and that every figure says it is approximate."""

from __future__ import annotations

import re
import warnings

import pytest
from typer.testing import CliRunner

from memsim import Run, Timeline, simulate
from memsim.cli.entry import app
from memsim.errors import InputError, Unsupported
from memsim.operators.packed4bit import packed_sizes
from memsim.simulation.build import model_of

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def timeline(kind: str, **keys: object) -> Timeline:
    with pytest.warns(UserWarning, match=f"approximate: {kind.upper()} is simulated as"):
        return simulate(
            Run(
                **{
                    "model": MODEL,
                    "method": {"kind": "qlora", "quantization": kind},
                    "batch": {"sequence": 64},
                    "steps": 1,
                    **keys,
                }
            )
        )


def test_sizes_of_the_buffers() -> None:
    assert packed_sizes("gptq", (512, 256), 128) == [512 * 256 // 2, 2 * 512 // 2, 2 * 2 * 512, 4 * 256]
    assert packed_sizes("awq", (512, 256), 32) == [512 * 256 // 2, 8 * 512 // 2, 2 * 8 * 512]


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_the_report_says_it_is_approximate(kind: str) -> None:
    about = timeline(kind).about
    assert ("approximate", f"kernels of {kind.upper()}, not held against recordings") in about.facts
    assert not any(
        name == "approximate" for name, _ in simulate(Run(model=MODEL, method={"kind": "qlora"}, steps=1)).about.facts
    )


def test_the_command_line_says_it_on_stderr() -> None:
    result = CliRunner().invoke(
        app, ["simulate", "llama3.2-1b", "--set", "method.kind=qlora", "--set", "method.quantization=gptq", "--json"]
    )
    assert result.exit_code == 0
    assert "approximate: GPTQ is simulated as" in " ".join(result.stderr.split())
    assert "approximate" not in result.stdout.partition('"about"')[0] or result.stdout.lstrip().startswith("{")


def test_a_model_taken_for_a_llama_is_a_fact() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ("assumed", "simulated as Llama") in simulate(
            Run(model={**MODEL, "model_type": "newest"}, steps=1)
        ).about.facts


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_gptq_keeps_dequantized_weights_and_awq_does_not(kind: str) -> None:
    model = model_of(Run(model=MODEL, method={"kind": "qlora", "quantization": kind}, batch={"sequence": 64}))
    (graph,) = model.layer_graphs
    kept = {s for op in graph.operators if op.kind == "mm" for s in op.saved}
    weights = [2 * p.elements for p in model.layers[0] if p.quantized]
    assert sorted(graph.storage_bytes[s] for s in kept) == (sorted(weights) if kind == "gptq" else [])


@pytest.mark.parametrize(
    ("method", "error", "text"),
    [
        (
            {"quantization": "gptq", "group_size": 96},
            InputError,
            "method.group_size: 96 does not divide the 128 input features of self_attn.q_proj.weight; 128",
        ),
        (
            {"quantization": "awq", "casts": "trl"},
            Unsupported,
            "method.casts: trl with quantization awq is not supported; peft is",
        ),
        (
            {"quantization": "gptq", "double_quant": False},
            InputError,
            "method.double_quant: false goes with quantization nf4",
        ),
    ],
)
def test_what_cannot_be(method: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulate(Run(model=MODEL, method={"kind": "qlora", **method}))


def test_output_features_that_do_not_pack() -> None:
    with (
        pytest.raises(InputError, match=r"gate_proj\.weight has 260 output features; " r"int8 can"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        simulate(
            Run(
                model={**MODEL, "intermediate_size": 260},
                method={"kind": "qlora", "quantization": "awq", "group_size": 4},
            )
        )
