"""LoRA as PEFT executes it (peft/tuners/lora/layer.py, Linear.forward): a frozen base, and two small linear layers in fp32 beside it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from memsim.builder import Builder, Technique, Tensor, module_call
from memsim.errors import InputError
from memsim.models import functional as F
from memsim.models.model import Model, Parameter
from memsim.passes.lora_parameters import adapter_parameters, folding

LINEAR = ("linear", "conv1d")  # kinds of modules that PEFT's Linear takes


@dataclass(frozen=True)
class Lora:
    """Adapter settings: rank, the targeted modules ("all-linear" or names), dropout probability; what passes/lora_parameters.py adds."""

    rank: int
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    dtype: str = "fp32"  # PEFT's autocast_adapter_dtype keeps adapters of half-precision models in fp32
    alpha: int = 16
    excluded: frozenset[str] = frozenset()  # last names of modules that "all-linear" leaves out
    parameters: tuple[tuple[str, int], ...] = ()  # (end of its path, rank) of each parameter with an adapter of its own


def matches(lora: Lora, module: str) -> bool:
    """Whether PEFT puts an adapter on the linear module with this path (peft/tuners/tuners_utils.py, check_target_module_exists)."""
    if lora.targets == "all-linear":
        return module != "lm_head" and module.rpartition(".")[2] not in lora.excluded
    names = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    return any(module == name or module.endswith(f".{name}") for name in names)


def check_targets(model: Model, lora: Lora) -> None:
    """Raises InputError where a target matches no linear module of the model."""
    if lora.targets == "all-linear":
        return
    modules = [p.name.removesuffix(".weight") for kind in model.layers for p in kind if p.module in LINEAR and p.name.endswith(".weight")]
    for name in [lora.targets] if isinstance(lora.targets, str) else lora.targets:
        if not any(matches(replace(lora, targets=[name]), module) for module in modules):
            valid = sorted({module.rsplit(".", 1)[-1] for module in modules})
            near = difflib.get_close_matches(str(name), valid, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"method.targets: {name!r} matches no linear module{hint} (there are {', '.join(valid)})")


def wrapped(lora: Lora) -> Technique:
    """Linear modules that run with their adapters, and nothing else that trains."""

    def rule(b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]) -> tuple[Tensor, ...] | None:
        if kind not in LINEAR or "module" not in attrs or not matches(lora, str(attrs["module"])):
            return None
        return (lora_linear(b, kind, attrs, inputs[0], inputs[1:], lora),)

    return Technique(rule=rule, trainable=lambda name: ".lora_" in name, fold=folding(lora) if lora.parameters else None)


def with_adapters(model: Model, lora: Lora) -> Model:
    """The model, built with `wrapped`, with the adapters among its parameters and its own frozen. Raises InputError where a target matches nothing."""
    check_targets(model, lora)
    layers = tuple(tuple(_with_adapters(kind, lora)) for kind in model.layers)
    return replace(model, layers=layers).map_parameters(lambda p: p if p.adapter else replace(p, trainable=False))


def _with_adapters(parameters: Sequence[Parameter], lora: Lora) -> list[Parameter]:
    rows: list[Parameter] = []
    pending: list[Parameter] = []
    for i, p in enumerate(parameters):
        rows.append(p)
        module, _, kind = p.name.rpartition(".")
        if p.module in LINEAR and kind == "weight" and matches(lora, module):
            out, inputs = p.shape if p.module == "linear" else p.shape[::-1]
            pending = [
                Parameter(f"{module}.lora_A.weight", (lora.rank, inputs), lora.dtype, adapter=True, module="adapter", created_dtype=p.dtype),
                Parameter(f"{module}.lora_B.weight", (out, lora.rank), lora.dtype, adapter=True, module="adapter", created_dtype=p.dtype),
            ]
        pending += adapter_parameters(lora, p)
        following = parameters[i + 1].name if i + 1 < len(parameters) else ""
        if pending and following.rpartition(".")[0] != module:
            rows += pending
            pending = []
    return rows


@module_call
def lora_linear(b: Builder, kind: str, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], lora: Lora) -> Tensor:
    """Linear.forward of PEFT: result + lora_B(lora_A(dropout(x))) * scaling, in the adapters' dtype, and back."""
    result = b.run(kind, x, *weights, **attrs)[0]
    result_dtype = result.dtype
    own = x.dtype != lora.dtype
    x = F.to(b, x, lora.dtype)
    with b.locals(*([x] if own else []), result):
        result = b.op("add", result, b.op("mul_scalar", lora_branch(b, x, result.shape[-1], lora)))
    result = F.to(b, result, result_dtype)
    return result


def lora_branch(b: Builder, x: Tensor, out_features: int, lora: Lora) -> Tensor:
    """lora_B(lora_A(dropout(x)))."""
    return F.linear(b, F.linear(b, dropout(b, x, lora.dropout), "lora_A", lora.rank, lora.dtype), "lora_B", out_features, lora.dtype)


def dropout(b: Builder, x: Tensor, p: float) -> Tensor:
    """nn.Dropout(p)(x), or nn.Identity."""
    return b.op("dropout", x, p=p) if p else x
