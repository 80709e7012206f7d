"""Changes a model by a Run's method: adapters, vectors, quantized weights, copies that train. Refuses what PEFT
refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported
from memsim.framework.builder import PLAIN, Technique
from memsim.framework.model import Model
from memsim.passes.ia3 import Ia3, ia3_of, scaled, with_vectors
from memsim.passes.int8 import Int8
from memsim.passes.lora import with_adapters, wrapped
from memsim.passes.lora_parameters import converted, spelled_out, with_parameters
from memsim.passes.lora_settings import Lora
from memsim.passes.packed import Packed
from memsim.passes.quantize import Nf4, is_kept, with_quantized
from memsim.passes.targets import Sites, by_name, is_pattern, sites, split
from memsim.run.conflicts import QUANTIZED
from memsim.stacks.software import Software

if TYPE_CHECKING:
    from memsim.run.keys import Method

Quantization = Nf4 | Int8 | Packed  # how frozen weights are stored


def packing_of(method: Method) -> Quantization | None:
    """Returns how frozen weights are stored, None where they are not quantized."""
    if method.kind not in QUANTIZED:
        return None
    if method.quantization in ("gptq", "awq"):
        return Packed(method.quantization, method.group_size, "none" if method.quantization == "gptq" else method.casts)
    return Int8(method.casts) if method.quantization == "int8" else Nf4(method.double_quant, method.casts)


def lora_of(method: Method, model_type: str, stack: Software, saved: tuple[str, ...] = ()) -> Lora:
    """Returns the adapters' settings. `saved` are modules that PEFT trains as a whole without being asked to. Raises
    InputError.
    """
    return converted(
        Lora(
            method.rank,
            "all-linear" if method.targets is None else method.targets,
            method.dropout,
            dora=method.dora,
            bias=method.bias,
            layers=method.layers,
            saved=tuple(dict.fromkeys((*method.modules_to_save, *saved))),
            target_parameters=method.target_parameters,
            unnamed_output=stack.embedding_adapters_add_at_once,
        ),
        model_type,
    )


def technique_of(lora: Lora, packing: Quantization | None, stack: Software) -> Technique:
    """Returns the Technique that stands between the model's code and its operators."""
    return packing.technique(lora, stack) if packing else wrapped(lora)


def adapted(
    build: Callable[[Technique], Model], lora: Lora, packing: Quantization | None, stack: Software, model_type: str
) -> Model:
    """Returns the model with adapters, and quantized. Raises InputError where a target matches nothing."""
    if is_pattern(lora.targets):
        lora = spelled_out(lora, build(PLAIN), model_type)
    if not by_name(lora) and not lora.target_parameters:
        technique = technique_of(lora, packing, stack)
        model = with_adapters(build(technique), lora)
        if still := model.frozen_towers():
            model = with_adapters(build(replace(technique, frozen_towers=still)), lora)
    else:
        outer, of_layers = sites(plain := build(replace(PLAIN, quantizes=packing is not None)), lora, model_type)
        check_saved_packed(plain, packing, (outer, *of_layers))
        of_layers = with_parameters(plain, lora, model_type, of_layers)
        still = frozenset(
            i
            for i, span in enumerate(plain.spans())
            if lora.bias == "none" and all(of_layers[k] == Sites() for k in span)
        )

        def sited(of: Sites) -> Model:
            return build(replace(technique_of(replace(lora, sites=outer | of), packing, stack), frozen_towers=still))

        model, of_kinds = split(plain, of_layers, sited)
        model = with_adapters(model, lora, outer, of_kinds)
    check_embeddings(model, model_type)
    if packing is None:
        return model
    if any(p.own_class for kind in model.layers for p in kind):
        raise InputError(
            f"method.kind: qlora leaves linear modules of {model_type} as they are, whose class is its own, where "
            "transformers quantizes nn.Linear; lora works"
        )
    if isinstance(packing, Packed) and model_type == "gpt2":
        raise Unsupported(
            f"method.quantization: {packing.kind} with model_type gpt2, whose Conv1D is packed in another layout, is "
            "not supported; nf4 is"
        )
    if isinstance(packing, Packed):
        packing.check(model)
    return with_quantized(model, packing.packed, packing.casts)


def check_saved_packed(model: Model, packing: Quantization | None, all_sites: Sequence[Sites]) -> None:
    """Raises InputError where a quantized module is to train as a whole."""
    if packing is not None and (
        module := next((m for of in all_sites for m in sorted(of.saved) if is_packed(model, m)), None)
    ):
        raise InputError(
            f"method.modules_to_save: {module} is quantized, and cannot train; {model.head or 'classifier'}, "
            "embeddings and norms can"
        )


def is_packed(model: Model, module: str) -> bool:
    """True if the module is a linear one that quantization takes."""
    rows = (p for kind in (model.before, *model.layers, model.after) for p in kind)
    return not is_kept(module) and any(p.module == "linear" and p.name == f"{module}.weight" for p in rows)


def check_embeddings(model: Model, model_type: str) -> None:
    """Raises Unsupported for adapters on an embedding that are not modelled."""
    if model.towers and any(p.module == "embedding adapter" for _, p in model.in_order()):
        raise Unsupported(f"method.targets: embeddings of {model_type} are not supported yet; its linear modules are")


def with_ia3(
    build: Callable[[Technique], Model], method: Method, packing: Nf4 | Int8 | None, stack: Software, model_type: str
) -> Model:
    """Returns the model with (IA)³'s vectors, and quantized. Raises InputError."""
    ia3: Ia3 = ia3_of(model_type, method.targets, method.feedforward, method.modules_to_save)
    outer, of_layers = sites(plain := build(replace(PLAIN, quantizes=packing is not None)), ia3, model_type)
    check_saved_packed(plain, packing, (outer, *of_layers))
    if any("embed" in module or module in ("wte", "wpe") for module in outer.targets):
        raise InputError(
            f"method.targets: PEFT's ia3 takes no embedding ({', '.join(sorted(outer.targets))}); "
            "method.modules_to_save does"
        )
    if layered := next((name for name in ia3.feedforward if any(part.isdigit() for part in name.split("."))), None):
        raise Unsupported(
            f"method.feedforward: {layered!r}, a module of one layer, is not supported; names that are in every layer "
            "are, such as down_proj"
        )
    model, of_kinds = split(plain, of_layers, lambda of: build(scaled(replace(ia3, sites=outer | of), packing, stack)))
    model = with_vectors(model, ia3, outer, of_kinds)
    return with_quantized(model, packing.packed, packing.casts) if packing else model
