"""How a Run's method changes its model: adapters, vectors, quantized weights, copies that train; and what of a method PEFT refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from memsim.builder import PLAIN, Technique
from memsim.errors import InputError, Unsupported
from memsim.models.model import Model
from memsim.passes.ia3 import Ia3, ia3_of, scaled, with_vectors
from memsim.passes.int8 import Int8
from memsim.passes.lora import Lora, with_adapters, wrapped
from memsim.passes.lora_parameters import converted
from memsim.passes.packed import Packed
from memsim.passes.quantize import KEPT, Nf4, with_quantized
from memsim.passes.targets import Sites, by_name, sites, split
from memsim.stacks import Software

if TYPE_CHECKING:
    from memsim.run import Method

Packing = Nf4 | Int8 | Packed  # how frozen weights are stored
ADAPTERS = ("lora", "qlora")
KEYS: dict[str, tuple[str, ...]] = {  # key of a method → kinds that it goes with, beside its default
    "dora": ADAPTERS,
    "rslora": ADAPTERS,
    "bias": ADAPTERS,
    "layers": ADAPTERS,
    "modules_to_save": (*ADAPTERS, "ia3"),
    "feedforward": ("ia3",),
}


def check_method(method: Method) -> None:
    """Raises InputError for keys of a method that do not go together, Unsupported for what is not modelled."""
    if method.kind == "ia3":
        raise Unsupported("method.kind: ia3 is not supported yet, as loading it does not agree with recordings; lora is")
    if method.dora:
        raise Unsupported("method.dora: true is not supported yet, as loading it does not agree with recordings; false is")
    plain = type(method)()
    given = [key for key in KEYS if getattr(method, key) != getattr(plain, key)]
    for key in given:
        if method.kind not in KEYS[key]:
            raise InputError(f"method.{key}: goes with method.kind {' or '.join(KEYS[key])}, not with {method.kind}")
    if method.layers is not None and isinstance(method.targets, str):
        raise InputError(f"method.layers: PEFT takes them with a list of targets, not with {method.targets!r}")
    if method.kind == "qlora" and method.bias != "none":
        raise Unsupported(f"method.bias: {method.bias} with method qlora is not supported; with lora it is")
    if method.kind == "qlora" and method.modules_to_save and method.casts == "trl":
        raise Unsupported("method.casts: trl with method.modules_to_save is not supported; peft and none are")
    check_quantization(method)


def check_quantization(method: Method) -> None:
    """Raises InputError for keys of a quantization that the method does not have, Unsupported for what is not modelled."""
    name = method.quantization
    if method.kind != "qlora" and name != "nf4":
        raise InputError(f"method.quantization: {name} goes with method.kind qlora; with {method.kind} weights are not quantized")
    if name != "nf4" and not method.double_quant:
        raise InputError(f"method.double_quant: false goes with quantization nf4, whose scales can be quantized; {name} has none of that")
    if name not in ("gptq", "awq") and method.group_size != 128:
        raise InputError(f"method.group_size: {method.group_size} goes with quantization gptq or awq; {name} has none")
    if name in ("gptq", "awq") and method.casts == "trl":
        raise Unsupported(f"method.casts: trl with quantization {name} is not supported; peft is")
    if name != "nf4" and (method.dora or method.modules_to_save):
        key = "dora: true" if method.dora else "modules_to_save"
        raise Unsupported(f"method.{key} with quantization {name} is not supported yet; with nf4 it is")


def packing_of(method: Method) -> Packing | None:
    """How frozen weights are stored, None where they are not quantized."""
    if method.kind != "qlora":
        return None
    if method.quantization in ("gptq", "awq"):
        return Packed(method.quantization, method.group_size, "none" if method.quantization == "gptq" else method.casts)
    return Int8(method.casts) if method.quantization == "int8" else Nf4(method.double_quant, method.casts)


def lora_of(method: Method, model_type: str, stack: Software) -> Lora:
    """The adapters' settings. Raises InputError."""
    return converted(
        Lora(
            method.rank,
            method.targets or "all-linear",
            method.dropout,
            dora=method.dora,
            bias=method.bias,
            layers=method.layers,
            saved=method.modules_to_save,
            unnamed_output=stack.embedding_adapters_add_at_once,
        ),
        model_type,
    )


def technique_of(lora: Lora, packing: Packing | None, stack: Software) -> Technique:
    """What stands between the model's code and its operators."""
    return packing.technique(lora, stack) if packing else wrapped(lora)


def adapted(build: Callable[[Technique], Model], lora: Lora, packing: Packing | None, stack: Software, model_type: str) -> Model:
    """The model with adapters, and quantized. Raises InputError where a target matches nothing."""
    if not by_name(lora):
        model = with_adapters(build(technique_of(lora, packing, stack)), lora)
    else:
        outer, of_layers = sites(plain := build(PLAIN), lora, model_type)
        if packing is not None and (module := next((m for of in (outer, *of_layers) for m in sorted(of.saved) if is_packed(plain, m)), None)):
            raise InputError(f"method.modules_to_save: {module} is 4-bit under qlora, and cannot train; {', '.join(KEPT)}, embeddings and norms can")
        model, of_kinds = split(plain, of_layers, lambda of: build(technique_of(replace(lora, sites=outer | of), packing, stack)))
        model = with_adapters(model, lora, outer, of_kinds)
    check_embeddings(model, model_type)
    if packing is None:
        return model
    if any(p.module == "conv1d" for kind in model.layers for p in kind):
        raise Unsupported(
            f"method.kind: qlora with model_type {model_type}, whose Conv1D modules are quantized in another layout, is not supported yet; lora is"
        )
    if isinstance(packing, Packed):
        packing.check(model)
    return with_quantized(model, packing.packed, packing.casts)


def is_packed(model: Model, module: str) -> bool:
    """Whether the module is a linear one that quantization takes."""
    return module not in KEPT and any(p.module == "linear" and p.name == f"{module}.weight" for kind in model.layers for p in kind)


def check_embeddings(model: Model, model_type: str) -> None:
    """Raises Unsupported for adapters on an embedding that are not modelled."""
    found = next((p for p in model.before if p.module == "embedding adapter"), None)
    if found is not None and model_type.startswith("gemma"):
        raise Unsupported(f"method.targets: {found.name.partition('.')[0]} of {model_type}, which scales it, is not supported; method.modules_to_save of it is")


def with_ia3(build: Callable[[Technique], Model], method: Method, model_type: str) -> Model:
    """The model with (IA)³'s vectors. Raises InputError."""
    ia3: Ia3 = ia3_of(model_type, method.targets, method.feedforward, method.modules_to_save)
    outer, of_layers = sites(plain := build(PLAIN), ia3, model_type)
    if any("embed" in module or module in ("wte", "wpe") for module in outer.targets):
        raise InputError(f"method.targets: PEFT's ia3 takes no embedding ({', '.join(sorted(outer.targets))}); method.modules_to_save does")
    model, of_kinds = split(plain, of_layers, lambda of: build(scaled(replace(ia3, sites=Sites(outer.targets | of.targets, outer.saved | of.saved)))))
    return with_vectors(model, ia3, outer, of_kinds)
