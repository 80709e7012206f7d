"""LoRA as PEFT executes it (peft/tuners/lora/layer.py, Linear.forward): a frozen base, and two small linear layers in
fp32 beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memsim.framework import functional as F
from memsim.framework.builder import Builder, Technique, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.tensor import Tensor
from memsim.passes.dora import Base, dora_branch, magnitude
from memsim.passes.lora_embedding import embedding_adapter, lora_embedding
from memsim.passes.lora_parameters import adapter_parameters, adapts_parameters, folding
from memsim.passes.lora_settings import Lora, matches
from memsim.passes.modules_to_save import EMBEDDING, MARK, copies, run_copy, stands_for
from memsim.passes.targets import HEAD, LINEAR, Sites, check_targets, is_tied, places

NORM = re.compile(r"norm|^ln_", re.IGNORECASE)  # names of modules that are not linear, and have a bias


def wrapped(lora: Lora) -> Technique:
    """Returns a Technique in which linear modules and embeddings run with their adapters. Nothing else trains but what
    the method names.
    """

    def rule(
        b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]
    ) -> tuple[Tensor, ...] | None:
        if kind in EMBEDDING:  # the adapter's output is what would be marked, and it requires a gradient anyway
            return run_adapted(
                b, kind, inputs, {key: value for key, value in attrs.items() if key != "input_embeddings"}, lora
            )
        return run_adapted(b, kind, inputs, attrs, lora)

    return technique(lora, rule)


def technique(
    lora: Lora, rule: Callable[[Builder, str, tuple[Tensor, ...], Mapping[str, object]], tuple[Tensor, ...] | None]
) -> Technique:
    """Returns the Technique of these adapters, with a rule that runs them."""
    saved = lora.sites.saved if lora.sites else frozenset()
    return Technique(
        rule=rule,
        trainable=lambda name: ".lora_" in name or MARK in name or is_bias_trained(lora, name),
        stands_for=stands_for(saved) if saved else None,
        fold=folding(lora) if adapts_parameters(lora) else None,
    )


def run_adapted(
    b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object], lora: Lora
) -> tuple[Tensor, ...] | None:
    """Runs a module that is not quantized, with its adapter or as a copy. Returns None where it has neither."""
    if lora.sites and lora.sites.saved:
        copied = run_copy(b, kind, inputs, attrs, lora.sites.saved)
        if copied is not None:
            return copied
    if kind in LINEAR and "module" in attrs and matches(lora, str(attrs["module"])):
        if ".".join(b.path) == attrs["module"]:
            return (lora_linear(b, kind, attrs, inputs[0], inputs[1:], lora),)
        with b.module(str(attrs["module"])):
            return (lora_linear(b, kind, attrs, inputs[0], inputs[1:], lora),)
    if (
        kind in EMBEDDING
        and lora.targets != "all-linear"
        and matches(lora, str(inputs[1].spec.parameter).removesuffix(".weight"))
    ):
        return (lora_embedding(b, kind, attrs, inputs, lora),)
    return None


def is_bias_trained(lora: Lora, name: str) -> bool:
    """True if a bias of the model trains beside the adapters (_mark_only_adapters_as_trainable)."""
    module, _, leaf = name.rpartition(".")
    if leaf != "bias" or lora.bias == "none" or MARK in name:
        return False
    copied = lora.sites is not None and module in lora.sites.saved
    return not copied and (lora.bias == "all" or (matches(lora, module) and not NORM.search(module.rpartition(".")[2])))


def with_adapters(model: Model, lora: Lora, outer: Sites | None = None, of_kinds: Sequence[Sites] = ()) -> Model:
    """Returns the model, built with `wrapped`, with the adapters among its parameters and its own frozen. With `outer`
    and `of_kinds`, adapters are at those sites.

    Raises InputError where a target matches nothing.
    """
    if not of_kinds:
        check_targets(model, lora, "", places(model, "", (*LINEAR, "embedding")))
    loras = [replace(lora, sites=of) for of in of_kinds] or [lora] * len(model.layers)
    outside = replace(lora, sites=outer)
    layers = tuple(tuple(_with_adapters(kind, own)) for kind, own in zip(model.layers, loras, strict=True))
    before, after = (tuple(_with_adapters(rows, outside)) for rows in (model.before, model.after))
    towers = tuple(replace(tower, after=tuple(_with_adapters(tower.after, outside))) for tower in model.towers)
    after += tuple(_tied_head(model, outside)) if is_tied(model) else ()
    return replace(model, before=before, layers=layers, after=after, towers=towers)


def _with_adapters(parameters: Sequence[Parameter], lora: Lora) -> list[Parameter]:
    rows: list[Parameter] = []
    pending: list[Parameter] = []
    saved = lora.sites.saved if lora.sites else frozenset()
    for i, p in enumerate(parameters):
        rows.append(p if p.adapter else replace(p, trainable=p.trainable and is_bias_trained(lora, p.name)))
        module, _, kind = p.name.rpartition(".")
        if p.module in LINEAR and kind == "weight" and matches(lora, module):
            pending = linear_adapter(module, p, lora)
        if p.module == "embedding" and lora.targets != "all-linear" and matches(lora, module):
            pending = embedding_adapter(p, lora)
        pending += adapter_parameters(lora, p)
        following = parameters[i + 1].name if i + 1 < len(parameters) else ""
        if following.rpartition(".")[0] != module:
            pending += copies(parameters, module) if module in saved else []
            rows += pending
            pending = []
    return rows


def linear_adapter(module: str, p: Parameter, lora: Lora) -> list[Parameter]:
    """Returns the adapters of a linear module with weight p."""
    out, inputs = p.shape[::-1] if p.module == "conv1d" else p.shape
    rows = [
        Parameter(
            f"{module}.lora_A.weight",
            (lora.rank, inputs),
            lora.dtype,
            adapter=True,
            module="adapter",
            created_dtype=p.dtype,
        ),
        Parameter(
            f"{module}.lora_B.weight",
            (out, lora.rank),
            lora.dtype,
            adapter=True,
            module="adapter",
            created_dtype=p.dtype,
        ),
    ]
    return [*rows, magnitude(module, p, lora)] if lora.dora else rows


def _tied_head(model: Model, lora: Lora) -> list[Parameter]:
    """Returns the adapters, or the copy, of a head without a weight of its own."""
    shared = next(p for p in model.before if p.module == "embedding")
    head = replace(shared, name=f"{HEAD}.weight", module="linear")
    if lora.sites and HEAD in lora.sites.saved:
        return copies([head], HEAD)
    return linear_adapter(HEAD, head, lora) if lora.targets != "all-linear" and matches(lora, HEAD) else []


@module_call
def lora_linear(
    b: Builder, kind: str, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], lora: Lora
) -> Tensor:
    """Runs Linear.forward of PEFT: result + lora_B(lora_A(dropout(x))) * scaling, in the adapters' dtype, and back."""
    result = b.run(kind, x, *weights, **attrs)[0]
    result_dtype = result.dtype
    own = x.dtype != lora.dtype
    x = F.to(b, x, lora.dtype)
    if lora.dora:
        result = dora_branch(b, Base(kind, weights), x, result, lora, *([x] if own else []), result)
    else:
        with b.locals(*([x] if own else []), result):
            result = b.op("add", result, b.op("mul_scalar", lora_branch(b, x, result.shape[-1], lora)))
    result = F.to(b, result, result_dtype)
    return result


def lora_branch(b: Builder, x: Tensor, out_features: int, lora: Lora) -> Tensor:
    """Runs lora_B(lora_A(dropout(x)))."""
    return F.linear(
        b, F.linear(b, dropout(b, x, lora.dropout), "lora_A", lora.rank, lora.dtype), "lora_B", out_features, lora.dtype
    )


release_in_slot_order(__name__)
