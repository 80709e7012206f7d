"""Refuses Runs that contradict themselves, whatever their model, before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported

if TYPE_CHECKING:
    from memsim.run.job import Run
    from memsim.run.keys import Method

ADAPTERS = ("lora", "qlora")
VECTORS = ("ia3", "qia3")
QUANTIZED = ("qlora", "qia3")
KEYS: dict[str, tuple[str, ...]] = {  # key of a method → kinds that accept it with a value other than its default
    "dora": ADAPTERS,
    "rslora": ADAPTERS,
    "bias": ADAPTERS,
    "layers": ADAPTERS,
    "target_parameters": ADAPTERS,
    "modules_to_save": (*ADAPTERS, *VECTORS),
    "feedforward": VECTORS,
}


def check_method(method: Method) -> None:
    """Raises InputError for keys of a method that do not go together, Unsupported for what is not modelled."""
    plain = type(method)()
    given = [key for key in KEYS if getattr(method, key) != getattr(plain, key)]
    for key in given:
        if method.kind not in KEYS[key]:
            raise InputError(f"method.{key}: goes with method.kind {' or '.join(KEYS[key])}, not with {method.kind}")
    if method.layers is not None and isinstance(method.targets, str):
        raise InputError(f"method.layers: PEFT takes them with a list of targets, not with {method.targets!r}")
    if method.targets == () and not method.target_parameters:
        raise InputError(
            "method.targets: [] adapts nothing; names of modules do, or method.target_parameters beside it"
        )
    if method.kind == "qlora" and method.bias != "none":
        raise Unsupported(f"method.bias: {method.bias} with method qlora is not supported; with lora it is")
    if method.kind in QUANTIZED and method.modules_to_save and method.casts == "trl":
        raise Unsupported("method.casts: trl with method.modules_to_save is not supported; peft and none are")
    check_quantization(method)


def check_quantization(method: Method) -> None:
    """Raises InputError for keys of a quantization that the method does not have, Unsupported for what
    is not modelled.
    """
    name = method.quantization
    if method.kind not in QUANTIZED and name != "nf4":
        raise InputError(
            f"method.quantization: {name} goes with method.kind {' or '.join(QUANTIZED)}; with {method.kind} weights "
            "are not quantized"
        )
    if name != "nf4" and not method.double_quant:
        raise InputError(
            f"method.double_quant: false goes with quantization nf4, whose scales can be quantized; {name} has none "
            "of that"
        )
    if name not in ("gptq", "awq") and method.group_size != 128:
        raise InputError(f"method.group_size: {method.group_size} goes with quantization gptq or awq; {name} has none")
    if name in ("gptq", "awq") and method.kind == "qia3":
        raise InputError(f"method.quantization: PEFT has no ia3 on {name}; nf4 and int8 work")
    if name in ("gptq", "awq") and method.casts == "trl":
        raise Unsupported(f"method.casts: trl with quantization {name} is not supported; peft is")
    if name in ("gptq", "awq") and method.dora:
        raise InputError(f"method.dora: PEFT has no DoRA on {name}; nf4 and int8 work")
    if name not in ("nf4", "int8") and method.modules_to_save:
        raise Unsupported(f"method.modules_to_save with quantization {name} is not supported yet; with nf4 it is")


def check_grad_scaler(run: Run) -> None:
    """Raises InputError where PyTorch's scaler fails or has nothing to do, Unsupported where it is not held against
    recordings.
    """
    if run.grad_scaler and (run.optimizer_in_backward or run.optimizer == "muon"):
        other = "optimizer_in_backward: true" if run.optimizer_in_backward else "optimizer: muon"
        raise Unsupported(f"grad_scaler: true with {other} is not supported yet; false is")
    if not run.grad_scaler or run.precision == "amp-fp16":
        return
    if run.precision != "fp16":
        raise InputError(
            f"grad_scaler: true with precision {run.precision} has no fp16 gradients to keep from underflow; "
            "precision amp-fp16 has"
        )
    if run.method.kind == "full":
        raise InputError(
            "grad_scaler: true with precision fp16 fails in PyTorch: Attempting to unscale FP16 gradients; precision "
            "amp-fp16, whose weights are fp32, works"
        )


def check_in_backward(run: Run) -> None:
    """Raises Unsupported for a Run that needs every gradient, or the sum of several, before the optimizer steps."""
    if run.batch.accumulation > 1:
        raise Unsupported(
            "optimizer_in_backward: it steps as soon as a gradient is there, before others could be added; "
            "batch.accumulation: 1 works"
        )
    if run.clip_grad_norm:
        raise Unsupported(
            "optimizer_in_backward: no gradient is left once all are known, so none can be clipped; clip_grad_norm: "
            "null works"
        )
