"""QLoRA (Dettmers et al., 2023) as bitsandbytes and PEFT execute it: frozen NF4 weights, everything else in fp32,
adapters beside them, under autocast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from memsim.framework import functional as F
from memsim.framework.builder import Builder, Rule, Technique, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.roles import COPY
from memsim.framework.tensor import Tensor
from memsim.passes import dora
from memsim.passes.lora import lora_branch, run_adapted, technique
from memsim.passes.lora_settings import Lora, matches
from memsim.passes.modules_to_save import BY_OPERATOR
from memsim.passes.targets import HEADS
from memsim.stacks.software import Software

COMPUTE = "bf16"  # bnb_4bit_compute_dtype
CAST_BACK = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "wpe.weight")
KEPT = (*HEADS, "classifier")  # modules_to_not_convert
CREATED_AS_BASE = ("parameter adapter", "embedding adapter", COPY)  # adapters of modules that are never quantized


# Runs a quantized linear module, given attributes, x, weight and bias.
Base = Callable[[Builder, Mapping[str, object], Tensor, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Nf4:
    """The settings of NF4. double: the scales are quantized too. casts: who casts the parameters that are not
    quantized.

    With peft, prepare_model_for_kbit_training casts them to fp32. With trl, peft_module_casting_to_bf16 of TRL then
    casts the head and the embeddings back. With none, nothing casts them.
    """

    double: bool = True
    casts: str = "peft"

    @property
    def packed(self) -> str:
        """The way in which a weight is stored, as in Parameter.quantized."""
        return "nf4-double" if self.double else "nf4"

    def technique(self, lora: Lora, stack: Software) -> Technique:
        """Returns the Technique that replaces linear modules while the model's code runs."""
        return quantized(self, lora, stack)

    def base(self, stack: Software) -> Base:
        """Returns the function that runs a linear module."""

        def run(b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
            return linear4bit(b, self.attributes(attrs, stack), x, weights)

        return run

    def attributes(self, attrs: Mapping[str, object], stack: Software) -> dict[str, object]:
        """Returns the attributes of the operator "linear4bit"."""
        return {**attrs, "double": self.double, "dtype": COMPUTE, "as_input": stack.bnb_computes_in_inputs_dtype}


def is_kept(module: str) -> bool:
    """True if transformers leaves this linear module as it is (quantizers/base.py, get_modules_to_not_convert): heads,
    and T5's `wo`.
    """
    return module in KEPT or module.rpartition(".")[2] == "wo"


def is_quantized(p: Parameter) -> bool:
    """True if bitsandbytes replaces this weight's module by Linear4bit (replace_with_bnb_linear)."""
    module, _, kind = p.name.rpartition(".")
    return p.module == "linear" and kind == "weight" and not is_kept(module) and not p.adapter


def quantized(nf4: Nf4, lora: Lora, stack: Software) -> Technique:
    """Returns a Technique whose linear modules are Linear4bit, with adapters where they are targeted."""

    def rule(
        b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]
    ) -> tuple[Tensor, ...] | None:
        if kind != "linear" or is_kept(str(attrs.get("module", KEPT[0]))):
            return run_adapted(b, kind, inputs, attrs, lora)
        attrs = nf4.attributes(attrs, stack)
        if matches(lora, str(attrs["module"])):
            return (lora_linear4bit(b, attrs, inputs[0], inputs[1:], lora),)
        return (linear4bit(b, attrs, inputs[0], inputs[1:]),)

    return packed_technique(rule, nf4.casts, lora)


def packed_technique(rule: Rule, casts: str, lora: Lora) -> Technique:
    """Returns a Technique of the rule, with the dtypes of other parameters, and those that train."""
    return stored_packed(technique(lora, rule), casts)


def stored_packed(technique: Technique, casts: str) -> Technique:
    """Returns the technique, with the parameters that are not quantized in the dtype that they are cast to."""

    def stored(name: str, dtype: str) -> str:
        return COMPUTE if name in CAST_BACK else dtype

    return replace(technique, stored=stored if casts == "trl" else None, quantizes=True)


def with_quantized(model: Model, packed: str, casts: str) -> Model:
    """Returns the model, built with such a technique, with its parameters as they are loaded: `packed`, or as they were
    and cast by prepare_model_for_kbit_training.
    """
    moved = packed.startswith("nf4") and not model.settings.stack.qlora_adapters_in_fp32

    def change(p: Parameter) -> Parameter:
        base = re.sub(r"\.(lora|ia3)_.*", "", p.name)
        if p.module in CREATED_AS_BASE or (p.adapter and (base in BY_OPERATOR or is_kept(base))):
            return p  # made in the dtype of its base, which stays as it is then
        if p.adapter:
            # PEFT moves adapters to the compute dtype, where there is one, before it casts them
            return replace(p, created_dtype=COMPUTE if moved else "")
        if is_quantized(p):
            return replace(p, quantized=packed)
        made = p.module == "linear" and p.name.endswith(".bias") and not is_kept(p.name.rpartition(".")[0])
        if casts == "none" or p.buffer or made:
            return p  # biases of the new modules are made in fp32
        if casts == "trl" and p.name in CAST_BACK:
            return replace(p, dtype=COMPUTE, created_dtype=COMPUTE, cast_twice=p.dtype)
        return replace(p, created_dtype=p.created_dtype or model.settings.created)

    return model.map_parameters(change)


@module_call
def linear4bit(b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Runs Linear4bit.forward of bitsandbytes. A bias is cast permanently the first time."""
    inp_dtype = x.dtype
    if not attrs["as_input"]:
        x = F.to(b, x, COMPUTE)
    return F.to(b, b.run("linear4bit", x, *recast_bias(b, x, weights), **attrs)[0], inp_dtype)


def recast_bias(b: Builder, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns weight and bias of a quantized module as they are once it runs with x: the bias in x's dtype."""
    if len(weights) == 1 or weights[1].dtype == x.dtype:
        return weights
    return weights[0], b.run("recast", weights[1], dtype=x.dtype)[0]


@module_call
def lora_linear4bit(
    b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], lora: Lora
) -> Tensor:
    """Runs Linear4bit.forward of PEFT (tuners/lora/bnb.py), under autocast."""
    result = linear4bit(b, attrs, x, weights)
    result = b.op("clone", result)
    if lora.dora:
        return dora.dora_branch(
            b,
            dora.Base("linear4bit", recast_bias(b, x, weights), bool(attrs["double"]), str(attrs["dtype"])),
            x,
            result,
            lora,
            result,
        )
    with b.locals(result):
        output = b.op("mul_scalar", lora_branch(b, x, weights[0].shape[0], lora))
    result = b.op("add", result, output)
    return result


release_in_slot_order(__name__)
