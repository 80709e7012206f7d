"""What memsim or a stack does not model of a Run: refused with one line, or said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported
from memsim.framework.model import Model
from memsim.models import decodes_beside, is_assumed
from memsim.passes.methods import packing_of
from memsim.passes.packed import Packed
from memsim.run.checkpointing import in_words, names_of
from memsim.run.conflicts import KEYS as METHOD_KEYS, QUANTIZED, check_grad_scaler, check_in_backward, check_method
from memsim.run.optimizer_names import OPTIMIZERS
from memsim.schedule.optimizers.bitsandbytes import lacks_kernel
from memsim.simulation.precision import PRECISIONS
from memsim.stacks.known import STACKS
from memsim.stacks.software import Software

if TYPE_CHECKING:
    from memsim.run.job import Run


def check_towers(run: Run) -> None:
    """Raises Unsupported for what is not modelled of an encoder with a decoder, InputError for what needs one."""
    kind = run.config.get("model_type")
    if not decodes_beside(run.config):
        if run.batch.target is not None:
            raise InputError(
                f"batch.target: {run.batch.target} tokens of a decoder go with an encoder-decoder (t5), not with "
                f"model_type {kind}"
            )
        return
    if not (
        run.checkpointing in ("none", "full", "selective")
        or (isinstance(run.checkpointing, dict) and "save" in run.checkpointing)
    ):
        raise Unsupported(
            f"checkpointing: {in_words(run.checkpointing)} with model_type {kind} is not supported yet; none, full "
            "and selective are"
        )
    if run.method.casts == "trl":
        raise Unsupported(f"method.casts: trl with model_type {kind} is not supported; peft is")
    if run.method.kind in ("ia3", "qia3") or run.method.layers is not None:
        key = "layers" if run.method.layers is not None else "kind"
        raise Unsupported(
            f"method.{key}: {getattr(run.method, key)} with model_type {kind} is not supported yet; lora for all "
            "layers is"
        )


def check_supported(run: Run) -> None:
    """Raises Unsupported for a Run that is valid but not modelled yet, naming the key."""
    from memsim.catalog import devices

    for key, value, known in (("precision", run.precision, PRECISIONS), ("optimizer", run.optimizer, OPTIMIZERS)):
        if value not in known:
            raise Unsupported(f"{key}: {value} is not supported yet; {', '.join(known)} are")
    if run.method.kind in QUANTIZED and run.precision == "amp-fp16":
        raise Unsupported(
            f"precision: amp-fp16 with method {run.method.kind}, which computes in bf16, is not supported; bf16 is"
        )
    if run.method.kind in QUANTIZED and run.precision != "bf16" and run.method.casts != "peft":
        raise Unsupported(
            f"method.casts: {run.method.casts} with precision {run.precision} is not supported; with bf16 it is"
        )
    check_grad_scaler(run)
    if run.fsdp > 1:
        raise Unsupported(f"fsdp: {run.fsdp} is not supported yet; 1 is")
    if run.device is not None and devices()[run.device].sm is None:
        raise Unsupported(
            f"device: {run.device} is not NVIDIA's, and its kernels are not modelled; device_memory_gib asks whether "
            "a run fits its memory"
        )
    if run.optimizer_in_backward:
        check_in_backward(run)
    check_towers(run)
    check_stack(run, STACKS[run.stack])
    check_method(run.method)


def check_kernels(run: Run, model: Model) -> None:
    """Raises Unsupported where the optimizer has no kernel for a parameter."""
    for _, p in model.in_order():
        if p.trainable and not p.buffer and lacks_kernel(run.optimizer, p):
            name = f"{run.optimizer} of bitsandbytes"
            raise Unsupported(
                f"optimizer: {name} has no kernel for bf16 gradients with fp32 state ({p.name}); precision: fp32, "
                "fp16 or amp-bf16 works"
            )


def check_stack(run: Run, stack: Software) -> None:
    """Raises Unsupported for what is not held against recordings of the stack."""
    if not stack.runs_on(run.sm):
        raise Unsupported(f"sm: {run.sm} is not supported with torch {stack.torch}; {stack.devices} are")
    for key, values in stack.held.items():
        for asked in asked_of(run)[key]:
            if asked not in values:
                raise Unsupported(
                    f"{key}: {asked} with stack {stack.name} is not supported{stack.lacks.get(asked, ' yet')}; "
                    f"{', '.join(values)} are"
                )
    if stack.loss_slices_logits and run.batch.sequence == 1:
        raise Unsupported(
            f"batch.sequence: 1 with stack {stack.name} leaves no token to learn from; 2 and more are supported"
        )


def asked_of(run: Run) -> dict[str, tuple[str, ...]]:
    """What the Run asks for, in words, of each key that a stack may hold some values of."""
    method = run.method
    plain = type(method)()
    return {
        "model_type": (str(run.config.get("model_type")),),
        "method.kind": (method.kind,),
        "method": tuple(key for key in METHOD_KEYS if getattr(method, key) != getattr(plain, key)),
        "method.quantization": (method.quantization,),
        "precision": (run.precision,),
        "grad_scaler": (str(run.grad_scaler).lower(),),
        "optimizer": (run.optimizer,),
        "optimizer_in_backward": (str(run.optimizer_in_backward).lower(),),
        "attention": (run.attention,),
        "batch.padding": ("none" if not run.batch.padding else "some",),
        "checkpointing": names_of(run.checkpointing),
        "train": ("some" if run.train.only or run.train.freeze else "all",),
    }


def warnings_of(run: Run, strict: bool = False) -> list[str]:
    """What is taken for granted in the figures."""
    packing = packing_of(run.method)
    llama = [assumed(run)] if not strict and is_assumed(run.config) else []
    return [*llama, *([packing.assumption] if isinstance(packing, Packed) else [])]


def assumed(run: Run) -> str:
    """The warning for a model that is taken for a Llama."""
    return (
        f"model_type {run.config.get('model_type')!r} is not known: simulated as Llama, whose fields it has; what "
        "else it does is not in the figures"
    )
