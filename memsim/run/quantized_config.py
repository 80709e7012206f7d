"""What a config.json says of its weights' quantization (transformers' `quantization_config`), as keys of a Run's
method: what transformers loads for it, or one line that says how to say what is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported, show

if TYPE_CHECKING:
    from memsim.run.keys import Method

KEY = "model.quantization_config"
HEADS = frozenset({"lm_head", "embed_out", "output_layer"})
# of models for several media, whose names some checkpoints list whatever they hold
OF_OTHER_MEDIA = frozenset(
    {"multi_modal_projector", "merger", "modality_projection", "vision_tower", "vision_model", "visual", "audio_tower"}
)
# field → what it must be for what is modelled; each may be missing
BITSANDBYTES: Mapping[str, tuple[object, ...]] = {
    "llm_int8_threshold": (6.0,),
    "llm_int8_has_fp16_weight": (False,),
    "llm_int8_enable_fp32_cpu_offload": (False,),
    "bnb_4bit_quant_storage": ("uint8",),
}
GPTQ: Mapping[str, tuple[object, ...]] = {
    "bits": (4,),
    "format": ("gptq", "gptq_v2"),
    "checkpoint_format": ("gptq", "gptq_v2"),
    "lm_head": (False,),
    "dynamic": ({},),
    "is_marlin_format": (False,),
}
AWQ: Mapping[str, tuple[object, ...]] = {
    "bits": (4,),
    "w_bit": (4,),
    "format": ("gemm",),
    "version": ("gemm",),
    "zero_point": (True,),
}
KINDS = {"lora": "qlora", "ia3": "qia3", "full": "qlora"}  # of a method → the one that takes quantized weights


def settled(method: Method, config: Mapping[str, object]) -> Method:
    """The method with the quantization that the config's weights have; the same where the config says nothing of it.
    Raises InputError, and Unsupported for a quantization that is not modelled.
    """
    given = config.get("quantization_config")
    if given is None or given == {}:
        return method
    if not isinstance(given, Mapping):
        raise InputError(f"{KEY}: {show(given)} is not a mapping such as {{quant_method: awq, bits: 4}}")
    name, keys = stated(given)
    if method.kind in KINDS:
        raise InputError(
            f"{KEY}: the weights are quantized ({name}), which method.kind {method.kind} does not take; "
            f"{KINDS[method.kind]} does, and without {KEY.rpartition('.')[2]} the weights are in `precision`"
        )
    for key, value in keys.items():
        asked = getattr(method, key)
        if key in method.model_fields_set and asked != value:
            raise InputError(f"method.{key}: {_word(asked)} contradicts {KEY}, which is {name} with {_word(value)}")
    return method.model_copy(update=keys)


def stated(given: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The quantization's name for people, and the keys of a method that say it. Raises Unsupported."""
    name = str(given.get("quant_method") or "").lower()
    eight, four = given.get("load_in_8bit") is True, given.get("load_in_4bit") is True
    if eight or four or name == "bitsandbytes":
        return _bitsandbytes(given, eight, four)
    if name == "gptq":
        _check(given, "gptq", GPTQ)
        if given.get("modules_in_block_to_quantize") is not None:
            raise Unsupported(
                f"{KEY}: gptq of some modules (modules_in_block_to_quantize) is not supported; all linear ones are"
            )
        return "gptq", {"quantization": "gptq", "group_size": _group(given, "gptq", "group_size")}
    if name == "awq":
        _check(given, "awq", AWQ)
        _check_kept(given.get("modules_to_not_convert"), "awq", "modules_to_not_convert")
        size = "q_group_size" if "group_size" not in given and "q_group_size" in given else "group_size"
        return "awq", {"quantization": "awq", "group_size": _group(given, "awq", size)}
    dequantized = ", and trains dequantized" if name in ("mxfp4", "fp8") else ""
    raise Unsupported(
        f"{KEY}: {show(name) if name else 'no quant_method'} is not modelled{dequantized}; without the key the weights "
        "are in `precision`, and method.quantization nf4, int8, gptq and awq are modelled"
    )


def _bitsandbytes(given: Mapping[str, object], eight: bool, four: bool) -> tuple[str, dict[str, object]]:
    """The same, of bitsandbytes (BitsAndBytesConfig)."""
    if eight == four:
        raise InputError(f"{KEY}: bitsandbytes needs one of load_in_8bit and load_in_4bit to be true")
    _check(given, "bitsandbytes", BITSANDBYTES)
    skipped = given.get("llm_int8_skip_modules")
    if skipped is not None:
        _check_kept(skipped, "bitsandbytes", "llm_int8_skip_modules")
        if not HEADS & set(_names(skipped)):  # then transformers does not keep the head by itself
            raise Unsupported(
                f"{KEY}.llm_int8_skip_modules: {show(skipped)} lets the head be quantized, which is not supported; "
                "null and [lm_head] are"
            )
    if eight:
        return "bitsandbytes int8", {"quantization": "int8"}
    compute = str(given.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
    if compute != "bfloat16":
        raise Unsupported(f"{KEY}.bnb_4bit_compute_dtype: {compute} is not supported yet; bfloat16 is")
    double = given.get("bnb_4bit_use_double_quant", False)
    if not isinstance(double, bool):
        raise InputError(f"{KEY}.bnb_4bit_use_double_quant: {show(double)} is not true or false")
    if given.get("bnb_4bit_quant_type", "fp4") not in ("nf4", "fp4"):  # which take the same memory
        raise InputError(f"{KEY}.bnb_4bit_quant_type: {show(given['bnb_4bit_quant_type'])} is neither nf4 nor fp4")
    return "bitsandbytes 4-bit", {"quantization": "nf4", "double_quant": double}


def _check(given: Mapping[str, object], name: str, modelled: Mapping[str, tuple[object, ...]]) -> None:
    """Raises Unsupported for a field that is given and not as it must be."""
    for key, values in modelled.items():
        value = given.get(key)
        found = value.lower() if isinstance(value, str) else value
        if value is not None and (found not in values or isinstance(found, bool) != isinstance(values[0], bool)):
            raise Unsupported(
                f"{KEY}.{key}: {show(value)} of {name} is not supported; {' and '.join(map(_word, values))} "
                f"{'is' if len(values) == 1 else 'are'}"
            )


def _check_kept(value: object, name: str, key: str) -> None:
    """Raises Unsupported where modules beside the head stay as they are."""
    others = [module for module in _names(value) if module not in HEADS | OF_OTHER_MEDIA]
    if others:
        raise Unsupported(
            f"{KEY}.{key}: {show(others[0])} of {name}, which stays as it is, is not supported yet; lm_head is"
        )


def _names(value: object) -> Sequence[str]:
    """A list of modules' names; none where there is none. Raises InputError."""
    names = () if value is None else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{KEY}: {show(value)} is not a list of modules' names")
    return names


def _group(given: Mapping[str, object], name: str, key: str) -> int:
    """Input features that share a scale. Raises Unsupported."""
    size = given.get(key, 128)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise Unsupported(f"{KEY}.{key}: {show(size)} of {name} is not supported; a number of features such as 128 is")
    return size


def _word(value: object) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
