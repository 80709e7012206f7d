"""LoRA on GPTQ and AWQ checkpoints (Frantar et al., 2022; Lin et al., 2023), under autocast: frozen weights of 4 bits
with a scale for each group.

Figures are approximate, and marked so wherever one is shown: the kernels are read, not recorded
(operators/packed4bit.py), and another kernel has other temporaries. What PEFT does around them is exact
(tuners/lora/gptq.py and awq.py; prepare_model_for_kbit_training casts nothing for GPTQ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, Technique, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model
from memsim.framework.tensor import Tensor
from memsim.operators.packed4bit import PACKED
from memsim.passes.lora import lora_branch, run_adapted
from memsim.passes.lora_settings import Lora, matches
from memsim.passes.quantize import COMPUTE, KEPT, is_kept, is_quantized, packed_technique
from memsim.stacks.software import Software

KERNELS = {
    "gptq": "GPTQModel's torch kernel, which dequantizes a weight, multiplies, and keeps the dequantized weight for "
    "backward",
    "awq": "AutoAWQ's GEMM, which dequantizes a weight to multiply by it, and again in backward",
}


@dataclass(frozen=True)
class Packed:
    """The settings of packed weights. kind: gptq or awq. group: input features that share a scale. casts: who casts the
    parameters that are not quantized, as for Nf4.
    """

    kind: str
    group: int
    casts: str

    @property
    def packed(self) -> str:
        """The way in which a weight is stored, as in Parameter.quantized."""
        return f"{self.kind}:{self.group}"

    @property
    def assumption(self) -> str:
        """The warning that says why figures are approximate."""
        return (
            f"approximate: {self.kind.upper()} is simulated as {KERNELS[self.kind]}; its temporaries are read from "
            "the source, not held against recordings"
        )

    def technique(self, lora: Lora, stack: Software) -> Technique:
        """Returns a Technique whose linear modules have packed weights, with adapters where they are targeted."""
        base = linear_gptq if self.kind == "gptq" else linear_awq
        adapted = lora_gptq if self.kind == "gptq" else lora_awq

        def rule(
            b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]
        ) -> tuple[Tensor, ...] | None:
            if kind != "linear" or is_kept(str(attrs.get("module", KEPT[0]))):
                return run_adapted(b, kind, inputs, attrs, lora)
            if matches(lora, str(attrs["module"])):
                return (adapted(b, self.group, inputs[0], inputs[1:], lora),)
            return (base(b, self.group, inputs[0], inputs[1:]),)

        return packed_technique(rule, self.casts, lora)

    def check(self, model: Model) -> None:
        """Raises InputError where a group does not divide the input features, or an int32 the output features,
        Unsupported where experts are stacked.
        """
        if any(p.is_experts for kind in model.layers for p in kind):
            raise Unsupported(
                f"method.quantization: {self.kind} of stacked experts, which checkpoints have packed and transformers "
                "5 loads another way, is not supported; nf4 is, which leaves them unquantized, as bitsandbytes does"
            )
        weights = [p for kind in model.layers for p in kind if is_quantized(p)]
        for p in weights:
            if p.shape[1] % self.group:
                valid = gcd(128, *(q.shape[1] for q in weights))
                raise InputError(
                    f"method.group_size: {self.group} does not divide the {p.shape[1]} input features of {p.name}; "
                    f"{valid} does, and all others"
                )
            if p.shape[0] % PACKED:
                raise InputError(
                    f"method.quantization: {self.kind} packs {PACKED} weights in a number, and {p.name} has "
                    f"{p.shape[0]} output features; int8 can"
                )


@module_call
def linear_gptq(b: Builder, group: int, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Runs TorchQuantLinear.forward. Autograd sees a plain product, and keeps the dequantized weight. The bias is added
    in place.
    """
    out_shape = (*x.shape[:-1], weights[0].shape[0])
    rows = F.reshape(b, x, x.spec.elements // x.shape[-1], x.shape[-1])
    with b.no_grad():
        weight = F.to(b, b.op("dequantize", weights[0], group=group), x.dtype)
    return F.to(b, F.reshape(b, b.op("mm", rows, weight), *out_shape), x.dtype)


@module_call
def linear_awq(b: Builder, group: int, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Runs WQLinear_GEMM.forward, in fp16."""
    return F.to(b, b.op("linear_awq", F.to(b, x, "fp16"), *weights, autocast=b.autocast or COMPUTE), x.dtype)


@module_call
def lora_gptq(b: Builder, group: int, x: Tensor, weights: tuple[Tensor, ...], lora: Lora) -> Tensor:
    """Runs GPTQLoraLinear.forward of PEFT."""
    result = linear_gptq(b, group, x, weights)
    result_dtype = result.dtype
    x = F.to(b, x, lora.dtype)
    with b.locals(result):
        result = b.op("add", result, b.op("mul_scalar", lora_branch(b, x, result.shape[-1], lora)))
    return F.to(b, result, result_dtype)


@module_call
def lora_awq(b: Builder, group: int, x: Tensor, weights: tuple[Tensor, ...], lora: Lora) -> Tensor:
    """Runs AwqLoraLinear.forward of PEFT, under autocast."""
    result = linear_awq(b, group, x, weights)
    with b.locals(result):
        output = b.op("mul_scalar", lora_branch(b, x, weights[0].shape[0], lora))
    result = b.op("add", result, output)
    return result


release_in_slot_order(__name__)
