"""Names the keys of a Run that memsim or a stack does not model. They are refused with one line, or give a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported, show
from memsim.framework.model import Model
from memsim.models import decodes_beside, is_assumed
from memsim.passes.checkpoint import lacking, operators_of
from memsim.passes.int8 import Int8
from memsim.passes.methods import Quantization, packing_of
from memsim.passes.packed import Packed
from memsim.run.checkpointing import in_words, names_of
from memsim.run.conflicts import (
    ADAPTERS,
    KEYS as METHOD_KEYS,
    QUANTIZED,
    check_grad_scaler,
    check_in_backward,
    check_method,
)
from memsim.run.optimizer_names import OPTIMIZERS, held_by
from memsim.schedule.optimizers.bitsandbytes import lacks_kernel
from memsim.simulation.device import rates_of
from memsim.simulation.precision import PRECISIONS
from memsim.stacks.known import GOLDEN, STACKS
from memsim.stacks.software import Software
from memsim.units import gib

if TYPE_CHECKING:
    from memsim.run.job import Run

PYTHON = "3.11"  # trains: lifetimes follow its order of release; any from 3.11 on simulates (docs/lifetimes.md)


def check_towers(run: Run) -> None:
    """Raises Unsupported for what is not modelled of an encoder with a decoder, InputError for keys that need one."""
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
    if run.config.get("gradient_checkpointing") is True and run.checkpointing == "none":
        raise InputError(
            "model.gradient_checkpointing: true checkpoints every layer, which checkpointing: none denies; "
            "checkpointing: full says the same"
        )
    if run.fsdp > 1:
        raise Unsupported(f"fsdp: {run.fsdp} is not supported yet; 1 is")
    if run.optimizer_in_backward:
        check_in_backward(run)
    check_towers(run)
    check_stack(run, STACKS[run.stack])
    check_method(run.method)


def check_checkpoints(run: Run, model: Model, packing: Quantization | None) -> None:
    """Raises Unsupported for a strategy that is not modelled with this model, or InputError for one that fails in
    PyTorch.
    """
    hows = {c.how for c in model.checkpoints}
    if run.method.kind in ADAPTERS and run.method.target_parameters and "offload" in hows:
        raise Unsupported(
            "checkpointing: offload with method.target_parameters is not supported yet; full and selective are"
        )
    if any("cast" in c.saves for c in model.checkpoints) and any(
        op.kind == "recast" for graph in model.layer_graphs for op in graph.operators
    ):
        raise InputError(
            "checkpointing.save: cast fails in PyTorch where 4-bit modules have biases, which they cast once, when "
            "they first run; without cast it works"
        )
    uneven = [p for kind in model.layers for p in kind if p.quantized == "int8" and p.shape[1] % 4]
    if "selective" in hows and uneven and not model.settings.watched:
        raise Unsupported(
            f"checkpointing.plan: selective with method.quantization int8 of {uneven[0].name}, whose input features 4 "
            "does not divide, is not supported yet; checkpointing: selective is"
        )
    if "reentrant" in hows:
        check_reentrant(run, model, packing)
    if packing and model.settings.stack.bnb_always_dequantizes and "selective" in hows:
        raise Unsupported(
            f"checkpointing: selective with method qlora and stack {run.stack} is not supported yet; full is"
        )


def check_reentrant(run: Run, model: Model, packing: Quantization | None) -> None:
    """Raises Unsupported for reentrant checkpoints that are not modelled, or InputError for those that
    train nothing.
    """
    model_type = run.config.get("model_type")
    if isinstance(packing, Int8) and len({c.how for c in model.checkpoints}) > 1:
        raise Unsupported(
            "checkpointing: some layers reentrant with method.quantization int8 is not supported; all layers "
            "reentrant is"
        )
    if any(len(graph.outputs) > 1 for graph in model.layer_graphs):
        raise Unsupported(
            f"checkpointing: reentrant with model_type {model_type}, whose layers return more than one tensor, is not "
            "supported yet; full is"
        )
    layers = next(op for op in model.outer.operators if op.kind == "layers")
    if not model.settings.technique.inputs_require_grad and not layers.inputs[0].requires_grad:
        raise InputError(
            f"checkpointing: reentrant with frozen embeddings trains no layer with stack {run.stack}, which leaves "
            "their output as it is; full does"
        )
    # the products of its 4-bit modules read a leaf, whose cast is cached
    if packing and model.settings.stack.bnb_computes_in_inputs_dtype and model_type == "olmo2":
        raise Unsupported(
            f"checkpointing: reentrant with method qlora of olmo2 and stack {run.stack} is not supported yet; full is"
        )


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
    if stack.python != PYTHON:
        raise Unsupported(
            f"stack: {stack.name} trains on Python {stack.python}, whose order of release is not built; {PYTHON}'s is"
        )
    if not stack.runs_on(run.sm):
        raise Unsupported(f"sm: {run.sm} is not supported with torch {stack.torch}; {stack.devices} are")
    for key, values in held_by(stack).items():
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
    """Returns in words what the Run asks for, for each key of which a stack may hold only some values."""
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


def warnings_of(run: Run, model: Model, strict: bool = False) -> list[str]:
    """What is taken for granted in the figures, and what is in them against expectation."""
    packing = packing_of(run.method)
    llama = [assumed(run)] if not strict and is_assumed(run.config) else []
    approximate = [packing.assumption] if isinstance(packing, Packed) else []
    taken = []
    if "stack" not in run.model_fields_set and run.stack != GOLDEN.name:
        taken = [f"stack: {run.stack}, as torch {GOLDEN.torch} of the usual one has no code for sm {run.sm}"]
    memory = [memory_alone(run)] if stands_in(run) else []
    taken += other_dtype(run)
    return [*llama, *taken, *approximate, *memory, *unquantized(run, model, packing), *unsaved(run, model)]


def other_dtype(run: Run) -> list[str]:
    """That a config.json asks for weights in another dtype than a Run's default, where the Run says no precision."""
    field = "dtype" if run.config.get("dtype") is not None else "torch_dtype"
    asked = run.config.get(field)
    if "precision" in run.model_fields_set or asked in (None, "auto", "bfloat16", "torch.bfloat16"):
        return []
    return [f"model.{field}: {show(asked)} is not read: weights are in bf16, the default; `precision` says another"]


def unquantized(run: Run, model: Model, packing: Quantization | None) -> list[str]:
    """That the experts of a quantized model are not, where they are not."""
    experts = [p for _, p in model.in_order() if p.is_experts and not p.quantized]
    if packing is None or not experts:
        return []
    size, dtype = sum(p.nbytes for p in experts), experts[0].dtype
    cast = f", which prepare_model_for_kbit_training casts to {dtype}" if packing.casts == "peft" else ""
    return [
        f"method.quantization: {run.method.quantization} leaves the experts unquantized, as transformers 5 stacks them "
        f"and bitsandbytes replaces nn.Linear alone: {gib(size)} of the weights{cast}; method.kind: lora keeps "
        "them in `precision`"
    ]


def unsaved(run: Run, model: Model) -> list[str]:
    """That an operator of checkpointing.save is not in the model's layers, where PyTorch keeps nothing of it."""
    names = lacking(model, run.checkpointing)
    return [
        f"checkpointing.save: {name} is no operator of this model's layers, so nothing of it is kept; there are "
        f"{', '.join(operators_of(model))}"
        for name in names
    ]


def stands_in(run: Run) -> bool:
    """Whether the Run's device is known by its memory alone, so that NVIDIA's kernels stand in for its own."""
    from memsim.catalog import devices

    return run.device is not None and devices()[run.device].sm is None


def memory_alone(run: Run) -> str:
    """The warning for a device whose kernels are not modelled."""
    return (
        f"device: {run.device} is not NVIDIA's: its memory is used, and the kernels of sm {run.sm} stand in for its "
        f"own, whose workspaces and scratch memory may be others; times are those of {rates_of(run).device.label}"
    )


def assumed(run: Run) -> str:
    """Returns the warning for a model that is taken for a Llama."""
    return (
        f"model_type {run.config.get('model_type')!r} is not known: simulated as Llama, whose fields it has; what "
        "else it does is not in the figures"
    )
