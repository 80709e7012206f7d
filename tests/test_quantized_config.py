"""A config.json's quantization_config: it sets the method's quantization, or is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memsim import Run, simulate
from memsim.errors import InputError, Unsupported

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
FOUR = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": ["lm_head", "multi_modal_projector"],
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": None}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "lm_head": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def run(given: object, kind: str = "qlora", **method: object) -> Run:
    return Run(model={**MODEL, "quantization_config": given}, method={"kind": kind, **method})


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        (FOUR, {"quantization": "nf4"}),
        ({**FOUR, "bnb_4bit_use_double_quant": False}, {"double_quant": False}),
        (EIGHT, {"quantization": "int8"}),
        (GPTQ, {"quantization": "gptq", "group_size": 64}),
        (AWQ, {"quantization": "awq", "group_size": 32}),
    ],
)
def test_it_is_the_methods_quantization(quantization: object, method: dict[str, object]) -> None:
    said = Run(model=MODEL, method={"kind": "qlora", **method})
    found = run(quantization)
    assert found.method == said.method
    assert run(quantization, **method).method == said.method, "a Run that says the same"
    assert Run.load(found.plain()) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        assert simulate(found).peak_reserved == simulate(said).peak_reserved


def test_of_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "quantization_config": EIGHT}))
    assert Run(model=str(tmp_path), method={"kind": "qlora"}).method.quantization == "int8"


def test_none_changes_nothing() -> None:
    assert run(None, "lora").method.kind == run({}, "full").method.kind.replace("full", "lora") == "lora"


@pytest.mark.parametrize(
    ("quantization", "method", "error", "text"),
    [
        (
            FOUR,
            {"kind": "lora"},
            InputError,
            "model.quantization_config: the weights are quantized (bitsandbytes 4-bit), which method.kind lora does "
            "not take; qlora does",
        ),
        (AWQ, {"kind": "full"}, InputError, "which method.kind full does not take; qlora does"),
        (EIGHT, {"kind": "ia3"}, InputError, "which method.kind ia3 does not take; qia3 does"),
        (
            AWQ,
            {"kind": "qlora", "quantization": "nf4"},
            InputError,
            "method.quantization: nf4 contradicts model.quantization_config, which is awq with awq",
        ),
        (
            AWQ,
            {"kind": "qlora", "group_size": 128},
            InputError,
            "method.group_size: 128 contradicts model.quantization_config, which is awq with 32",
        ),
        (
            FOUR,
            {"kind": "qlora", "double_quant": False},
            InputError,
            "method.double_quant: false contradicts model.quantization_config, which is bitsandbytes 4-bit with true",
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            {"kind": "lora"},
            Unsupported,
            "model.quantization_config: 'fp8' is not modelled, and trains dequantized; without the key the weights are "
            "in `precision`",
        ),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
            {"kind": "full"},
            Unsupported,
            "model.quantization_config: 'mxfp4' is not modelled, and trains dequantized; without the key",
        ),
        ({"quant_method": "hqq"}, {}, Unsupported, "model.quantization_config: 'hqq' is not modelled; without the key"),
        ({"bits": 4}, {}, Unsupported, "model.quantization_config: no quant_method is not modelled"),
        ({"quant_method": "bitsandbytes"}, {}, InputError, "bitsandbytes needs one of load_in_8bit and load_in_4bit"),
        ({**EIGHT, "load_in_4bit": True}, {}, InputError, "needs one of load_in_8bit and load_in_4bit to be true"),
        ({**EIGHT, "llm_int8_threshold": 0.0}, {}, Unsupported, "llm_int8_threshold: 0.0 of bitsandbytes is not"),
        (
            {**FOUR, "bnb_4bit_compute_dtype": "float16"},
            {},
            Unsupported,
            "model.quantization_config.bnb_4bit_compute_dtype: float16 is not supported yet; bfloat16 is",
        ),
        ({**FOUR, "bnb_4bit_quant_storage": "bfloat16"}, {}, Unsupported, "bnb_4bit_quant_storage: 'bfloat16' of"),
        (
            {**FOUR, "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp"]},
            {},
            Unsupported,
            "llm_int8_skip_modules: 'model.layers.0.mlp' of bitsandbytes, which stays as it is, is not supported yet",
        ),
        ({**FOUR, "llm_int8_skip_modules": []}, {}, Unsupported, "lets the head be quantized, which is not supported"),
        ({**GPTQ, "bits": 8}, {}, Unsupported, "model.quantization_config.bits: 8 of gptq is not supported; 4 is"),
        ({**GPTQ, "group_size": -1}, {}, Unsupported, "group_size: -1 of gptq is not supported; a number of features"),
        ({**GPTQ, "checkpoint_format": "marlin"}, {}, Unsupported, "checkpoint_format: 'marlin' of gptq is not"),
        ({**AWQ, "version": "gemv"}, {}, Unsupported, "version: 'gemv' of awq is not supported; gemm is"),
        ({**AWQ, "modules_to_not_convert": ["gate"]}, {}, Unsupported, "modules_to_not_convert: 'gate' of awq, which"),
        ("awq", {}, InputError, "model.quantization_config: 'awq' is not a mapping such as"),
        ([4], {}, InputError, "model.quantization_config: [4] is not a mapping"),
    ],
)
def test_what_is_refused(quantization: object, method: dict[str, object], error: type[InputError], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)) as caught:
        Run(model={**MODEL, "quantization_config": quantization}, method={"kind": "qlora", **method})
    assert caught.type is error and "\n" not in str(caught.value) and str(caught.value).startswith("keyword arguments")
