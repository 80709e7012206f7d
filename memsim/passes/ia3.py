"""(IA)³ as PEFT executes it (peft/tuners/ia3/layer.py). A trained vector scales the output of a frozen module, or the
input of a feed-forward one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, Technique, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.tensor import Tensor
from memsim.passes.int8 import linear8bit
from memsim.passes.modules_to_save import MARK, copies, run_copy, stands_for
from memsim.passes.quantize import KEPT, Base, stored_packed
from memsim.passes.targets import HEAD, LINEAR, Sites, is_tied
from memsim.stacks.software import Software

# peft/utils/constants.py: model_type → its targets and, among them, its feed-forward modules.
QUERY_VALUE = (("q_proj", "v_proj", "down_proj"), ("down_proj",))
KEY_VALUE = (("k_proj", "v_proj", "down_proj"), ("down_proj",))
DEFAULTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": KEY_VALUE,
    "mistral": KEY_VALUE,
    "mixtral": (("k_proj", "v_proj"), ()),  # and w2, a module that is a parameter since transformers 5
    "qwen2": QUERY_VALUE,
    "qwen3": QUERY_VALUE,
    "gemma": QUERY_VALUE,
    "gemma2": QUERY_VALUE,
    "gemma3_text": QUERY_VALUE,
    "gpt2": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
    "gpt_bigcode": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
    "gpt_neox": (("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",)),
    "falcon": (("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",)),
    "bloom": (("query_key_value", "mlp.dense_4h_to_h"), ("mlp.dense_4h_to_h",)),
    "opt": (("q_proj", "k_proj", "fc2"), ("fc2",)),
    "phi": (("q_proj", "v_proj", "fc2"), ("fc2",)),
    "bert": (("key", "value", "output.dense"), ("output.dense",)),
}


VECTOR = ".ia3_l"  # the end of a vector's name


class QuantizedLinear(Protocol):
    """A way to store frozen weights: bitsandbytes' 4 or 8 bits."""

    @property
    def casts(self) -> str: ...
    def base(self, stack: Software) -> Base: ...


@dataclass(frozen=True)
class Ia3:
    """The targeted modules, those of them whose input is scaled, and modules that train as a whole. `sites` are set
    once full names are resolved.
    """

    targets: str | Sequence[str]
    feedforward: tuple[str, ...]
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    dtype: str = "fp32"
    sites: Sites = Sites()


def ia3_of(
    model_type: str, targets: str | Sequence[str] | None, feedforward: tuple[str, ...] | None, saved: tuple[str, ...]
) -> Ia3:
    """Returns the settings with PEFT's defaults for this family. Raises InputError where it has none."""
    own = DEFAULTS.get(model_type)
    if own is None and (targets is None or feedforward is None):
        missing = " and ".join(
            key for key, value in (("targets", targets), ("feedforward", feedforward)) if value is None
        )
        raise InputError(
            f"method.{missing.split()[0]}: PEFT has no default of ia3 for model_type {model_type}; give "
            f"method.{missing}"
        )
    given = () if isinstance(targets, str) or targets is None else targets
    if given and (other := next((name for name in feedforward or () if name not in given), None)):
        raise InputError(
            f"method.feedforward: {other!r} is not among method.targets ({', '.join(given)}), as PEFT wants it"
        )
    targets = own[0] if targets is None and own else targets or ()
    feedforward = own[1] if feedforward is None and own else feedforward or ()
    return Ia3(targets, feedforward, saved)


def is_feedforward(ia3: Ia3, module: str) -> bool:
    """True if the input of the module is scaled."""
    return any(module.endswith(name) for name in ia3.feedforward)


def scaled(ia3: Ia3, packing: QuantizedLinear | None, stack: Software) -> Technique:
    """Returns a Technique in which linear modules run with their vectors. With `packing` they are quantized."""

    def rule(
        b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]
    ) -> tuple[Tensor, ...] | None:
        copied = run_copy(b, kind, inputs, attrs, ia3.sites.saved) if ia3.sites.saved else None
        if copied is not None:
            return copied
        targeted = kind in LINEAR and attrs.get("module") in ia3.sites.targets
        if packing is not None and kind == "linear" and attrs.get("module", KEPT[0]) not in KEPT:
            run = packing.base(stack)
            return (
                ia3_quantized(b, run, attrs, inputs[0], inputs[1:], ia3)
                if targeted
                else run(b, attrs, inputs[0], inputs[1:]),
            )
        return (ia3_linear(b, kind, attrs, inputs[0], inputs[1:], ia3),) if targeted else None

    technique = Technique(
        rule=rule, trainable=lambda name: name.endswith(VECTOR) or MARK in name, stands_for=stands_for(ia3.sites.saved)
    )
    return technique if packing is None else stored_packed(technique, packing.casts)


def vector(module: str, p: Parameter, ia3: Ia3) -> Parameter:
    """Returns the vector of the module with weight p: [1, in] or [out, 1]."""
    out, inputs = p.shape[::-1] if p.module == "conv1d" else p.shape
    shape = (1, inputs) if is_feedforward(ia3, module) else (out, 1)
    return Parameter(f"{module}{VECTOR}", shape, ia3.dtype, adapter=True, module="adapter", created_dtype=p.dtype)


def with_vectors(model: Model, ia3: Ia3, outer: Sites, of_kinds: Sequence[Sites]) -> Model:
    """Returns the model, built with `scaled`, with the vectors among its parameters and its own frozen."""
    layers = tuple(
        tuple(_with_vectors(kind, replace(ia3, sites=of))) for kind, of in zip(model.layers, of_kinds, strict=True)
    )
    before, after = (tuple(_with_vectors(rows, replace(ia3, sites=outer))) for rows in (model.before, model.after))
    if is_tied(model) and HEAD in (outer.saved | outer.targets):
        shared = next(p for p in model.before if p.module == "embedding")
        after += tuple(
            _with_vectors([replace(shared, name=f"{HEAD}.weight", module="linear")], replace(ia3, sites=outer))[1:]
        )
    return replace(model, before=before, layers=layers, after=after)


def _with_vectors(parameters: Sequence[Parameter], ia3: Ia3) -> list[Parameter]:
    rows: list[Parameter] = []
    pending: list[Parameter] = []
    for i, p in enumerate(parameters):
        rows.append(replace(p, trainable=False))
        module, _, kind = p.name.rpartition(".")
        if p.module in LINEAR and kind == "weight" and module in ia3.sites.targets:
            pending = [vector(module, p, ia3)]
        following = parameters[i + 1].name if i + 1 < len(parameters) else ""
        if following.rpartition(".")[0] != module:
            rows += [*pending, *(copies(parameters, module) if module in ia3.sites.saved else [])]
            pending = []
    return rows


@module_call
def ia3_linear(
    b: Builder, kind: str, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], ia3: Ia3
) -> Tensor:
    """Runs Linear.forward of PEFT's IA3."""
    previous_dtype = x.dtype
    ia3_scaling = scaling(
        b, str(attrs["module"]), weights[0].shape[::-1] if kind == "conv1d" else weights[0].shape, ia3
    )
    if is_feedforward(ia3, str(attrs["module"])):
        x = F.to(b, x, ia3.dtype)
        interm = F.to(b, b.op("mul", x, ia3_scaling, label="ia3"), previous_dtype)
        with b.locals(x, interm):
            result = b.run(kind, interm, *weights, **attrs)[0]
    else:
        result = b.run(kind, x, *weights, **attrs)[0]
        result_dtype = result.dtype
        result = F.to(b, b.op("mul", result, ia3_scaling, label="ia3"), result_dtype)
    return result


def scaling(b: Builder, module: str, weight: tuple[int, ...], ia3: Ia3) -> Tensor:
    """Runs ia3_scaling *= ia3_l.flatten(), for a weight [out, in]."""
    feedforward = is_feedforward(ia3, module)
    size = weight[1] if feedforward else weight[0]
    parameter = b.parameter(f"{module}{VECTOR}", (1, size) if feedforward else (size, 1), ia3.dtype, True)
    return b.op("mul_scalar", b.op("view", parameter, shape=(size,)), label="ia3_l")


@module_call
def ia3_quantized(
    b: Builder, run: Base, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], ia3: Ia3
) -> Tensor:
    """Runs Linear4bit.forward and Linear8bitLt.forward of PEFT's IA3 (tuners/ia3/bnb.py), under autocast."""
    ia3_scaling = scaling(b, str(attrs["module"]), weights[0].shape, ia3)
    if is_feedforward(ia3, str(attrs["module"])):
        result = run(b, attrs, b.op("mul", x, ia3_scaling, label="ia3"), weights)
    else:
        result = run(b, attrs, x, weights)
        result = b.op("mul", result, ia3_scaling, label="ia3")
    if run is not linear8bit:
        result = b.op("clone", result)
    return result


release_in_slot_order(__name__)
