"""LLM.int8() (Dettmers et al., 2022) as bitsandbytes and PEFT execute it: frozen weights of one byte, adapters beside
them, under autocast.

It is as transformers' BitsAndBytesConfig(load_in_8bit=True) makes it: has_fp16_weights=False, outliers from 6.0 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError
from memsim.framework.builder import Builder, Technique, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor
from memsim.passes import dora
from memsim.passes.lora import lora_branch, run_adapted
from memsim.passes.lora_settings import Lora, matches
from memsim.passes.quantize import KEPT, Base, is_kept, packed_technique, recast_bias
from memsim.stacks.software import Software


@dataclass(frozen=True)
class Int8:
    """casts: who casts what is not quantized, as for Nf4. watched: layers run under a TorchDispatchMode, below which
    autocast casts nothing.
    """

    casts: str = "peft"
    packed: str = "int8"
    watched: bool = False

    def technique(self, lora: Lora, stack: Software) -> Technique:
        """Returns a Technique whose linear modules are Linear8bitLt, with adapters where they are targeted."""

        def rule(
            b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]
        ) -> tuple[Tensor, ...] | None:
            if kind != "linear" or is_kept(str(attrs.get("module", KEPT[0]))):
                return run_adapted(b, kind, inputs, attrs, lora)
            attrs = {**attrs, "below_autocast": True} if self.watched else attrs
            if matches(lora, str(attrs["module"])):
                return (lora_linear8bit(b, attrs, inputs[0], inputs[1:], lora),)
            return (linear8bit(b, attrs, inputs[0], inputs[1:]),)

        return packed_technique(rule, self.casts, lora)

    def base(self, stack: Software) -> Base:
        """A linear module as it runs."""

        def run(b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
            return linear8bit(b, {**attrs, "below_autocast": True}, x, weights)

        return run if self.watched else linear8bit


@module_call
def linear8bit(b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Linear8bitLt.forward of bitsandbytes: a bias is cast for good the first time. Raises InputError."""
    if len(x.shape) > 3:
        raise InputError(
            f"method.quantization: int8 fails in bitsandbytes, as {attrs.get('module', 'a module')} gets a tensor of "
            f"{len(x.shape)} dimensions: Only two or three dimensional matrices are supported for argument A; nf4 works"
        )
    return b.run("linear8bit", x, *recast_bias(b, x, weights), **attrs)[0]


@module_call
def lora_linear8bit(
    b: Builder, attrs: Mapping[str, object], x: Tensor, weights: tuple[Tensor, ...], lora: Lora
) -> Tensor:
    """Runs Linear8bitLt.forward of PEFT (tuners/lora/bnb.py), under autocast."""
    result = linear8bit(b, attrs, x, weights)
    if lora.dora:
        return dora.dora_branch(b, dora.Base("linear8bit", recast_bias(b, x, weights)), x, result, lora, result)
    with b.locals(result):
        output = b.op("mul_scalar", lora_branch(b, x, weights[0].shape[0], lora))
    result = b.op("add", result, output)
    return result


release_in_slot_order(__name__)
