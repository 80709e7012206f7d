"""Run → Timeline: the whole hourglass in one call."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from memsim.allocator import Settings as AllocatorSettings, allocate
from memsim.cost.efficiency import Efficiency
from memsim.cost.roofline import Rates
from memsim.errors import InputError, Unsupported
from memsim.framework.builder import PLAIN, Technique
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.machine.kernels import Stack, stack_for
from memsim.models import build, decodes_beside, is_assumed, saved_by_task, takes_tokens
from memsim.passes.checkpoint import checkpointed, enables_input_grads, require_input_grads
from memsim.passes.freeze import Freeze, frozen
from memsim.passes.int8 import Int8
from memsim.passes.methods import (
    ADAPTERS,
    KEYS as METHOD_KEYS,
    QUANTIZED,
    VECTORS,
    adapted,
    check_method,
    lora_of,
    packing_of,
    with_ia3,
)
from memsim.passes.packed import Packed
from memsim.run.checkpointing import in_words, names_of
from memsim.run.optimizer_names import OPTIMIZERS
from memsim.schedule import record
from memsim.schedule.optimizers.bitsandbytes import lacks_kernel, paged_state
from memsim.schedule.optimizers.torch_optim import Optimizer
from memsim.schedule.training import Plan
from memsim.stacks.known import STACKS
from memsim.stacks.software import Software
from memsim.tape import Tape
from memsim.timeline.curves import About, Timeline
from memsim.units import duration

if TYPE_CHECKING:
    from memsim.run.job import Run

PRECISIONS = ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16", "tf32")
AUTOCAST = {"amp-bf16": "bf16", "amp-fp16": "fp16"}
# precision → dtype of the weights, where it is not its own name
WEIGHTS = {"amp-bf16": "fp32", "amp-fp16": "fp32", "tf32": "fp32"}
PACKINGS = {"nf4": "NF4", "int8": "LLM.int8()", "gptq": "GPTQ", "awq": "AWQ"}  # names of method.quantization
UNLIMITED = 1 << 57  # bytes


def model_of(run: Run, other_order: bool = False, strict: bool = False) -> Model:
    """The Run's model after every pass. Raises InputError, and Unsupported for what memsim cannot simulate yet."""
    check_supported(run)
    method = run.method
    model_type = str(run.config.get("model_type"))
    lora = (
        lora_of(method, model_type, STACKS[run.stack], saved_by_task(run.config)) if method.kind in ADAPTERS else None
    )
    packing = packing_of(method)
    loaded = WEIGHTS.get(run.precision, run.precision)
    # what is not quantized is cast to fp32, and runs under autocast
    precision = "amp-bf16" if packing else run.precision
    software = STACKS[run.stack]
    tells = enables_input_grads(run.checkpointing)
    # the switch tells inputs of tokens only, PEFT's preparation reentrant ones
    if not takes_tokens(run.config) and method.kind not in ("lora", "ia3"):
        tells = tells and method.kind != "full" and run.checkpointing == "reentrant"
    tells = tells and not (software.checkpoints_frozen_inputs and method.kind == "full")
    tells = tells and not (packing and software.qlora_input_is_frozen and run.checkpointing != "reentrant")
    settings = Settings(
        batch=run.batch.size,
        sequence=run.batch.sequence,
        target=run.batch.target or 0,
        dtype=loaded if packing and packing.casts == "none" else WEIGHTS.get(precision, precision),
        attention=run.attention,
        padding=run.batch.padding,
        sm=run.sm,
        stack=STACKS[run.stack],
        technique=replace(PLAIN, autocast=AUTOCAST.get(precision), inputs_require_grad=tells),
        loaded=loaded if packing else "",
        other_order=other_order,
        watched=run.checkpointing == "selective"
        or (isinstance(run.checkpointing, dict) and "save" in run.checkpointing),
        routing=run.routing if isinstance(run.routing, str) else run.routing["imbalance"],
    )

    def built(technique: Technique) -> Model:
        technique = replace(technique, autocast=AUTOCAST.get(precision), inputs_require_grad=tells)
        return build(run.config, replace(settings, technique=technique), strict)

    if lora is not None:
        model = adapted(built, lora, packing, software, model_type)
    else:
        model = with_ia3(built, method, packing, software, model_type) if method.kind in VECTORS else built(PLAIN)  # type: ignore[arg-type]
    if run.train.only or run.train.freeze:
        if method.kind != "full":
            raise InputError(
                f"train: goes with method.kind full; with {method.kind} the adapters train, and nothing else"
            )

        def again(trains: Callable[[str], bool | None], towers: frozenset[int]) -> Model:
            return built(replace(PLAIN, trainable=lambda name: bool(trains(name)), frozen_towers=towers))

        model = frozen(model, Freeze(run.train.only, run.train.freeze), again)
    model = checkpointed(model, run.checkpointing)
    hows = {c.how for c in model.checkpoints}
    if lora is not None and lora.target_parameters and "offload" in hows:
        raise Unsupported(
            "checkpointing: offload with method.target_parameters is not supported yet; full and selective are"
        )
    if isinstance(packing, Int8) and "reentrant" in hows and len(hows) > 1:
        raise Unsupported(
            "checkpointing: some layers reentrant with method.quantization int8 is not supported; all layers "
            "reentrant is"
        )
    if "reentrant" in hows and any(len(graph.outputs) > 1 for graph in model.layer_graphs):
        raise Unsupported(
            f"checkpointing: reentrant with model_type {model_type}, whose layers return more than one tensor, is not "
            "supported yet; full is"
        )
    if any("cast" in c.saves for c in model.checkpoints) and any(
        op.kind == "recast" for graph in model.layer_graphs for op in graph.operators
    ):
        raise InputError(
            "checkpointing.save: cast fails in PyTorch where 4-bit modules have biases, which they cast once, when "
            "they first run; without cast it works"
        )
    if (
        "reentrant" in hows
        and not tells
        and not next(op for op in model.outer.operators if op.kind == "layers").inputs[0].requires_grad
    ):
        raise InputError(
            f"checkpointing: reentrant with frozen embeddings trains no layer with stack {run.stack}, which leaves "
            "their output as it is; full does"
        )
    # whose products read a leaf, whose cast is cached
    if packing and software.bnb_computes_in_inputs_dtype and "reentrant" in hows and model_type == "olmo2":
        raise Unsupported(
            f"checkpointing: reentrant with method qlora of olmo2 and stack {run.stack} is not supported yet; full is"
        )
    if packing and software.bnb_always_dequantizes and "selective" in hows:
        raise Unsupported(
            f"checkpointing: selective with method qlora and stack {run.stack} is not supported yet; full is"
        )
    return require_input_grads(model) if tells else model


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
    """Raises Unsupported for what needs every gradient, or the sum of several, before the optimizer steps."""
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


def tape_of_run(run: Run, model: Model | None = None) -> Tape:
    """Every allocator request of the Run: its load and its steps."""
    model = model or model_of(run)
    plan = Plan(
        run.steps,
        run.batch.accumulation,
        run.clip_grad_norm,
        Optimizer(run.optimizer),
        rates_of(run),
        run.optimizer_in_backward,
        run.grad_scaler,
    )
    check_kernels(run, model)
    return record(model, plan, stack_of(run))


def rates_of(run: Run) -> Rates:
    """What the time estimate goes by: the Run's device, or of the catalogue's the one that is nearest in compute
    capability and memory.
    """
    from memsim.catalog import devices

    known = devices()
    if run.device is not None:
        device = known[run.device]
    else:
        device = min(
            (d for d in known.values() if d.sm is not None),
            key=lambda d: (abs((d.sm or 0) - run.sm), abs(d.memory - run.device_bytes)),
        )
    e = run.efficiency
    return Rates(
        device, Efficiency(e.matmul, e.attention, e.memory, e.pcie, e.launch_us / 1e6), run.precision == "tf32"
    )


def stack_of(run: Run) -> Stack:
    """The stack on the Run's device, with its own multiprocessors where it is of the catalogue and `sm` is not
    overridden.
    """
    from memsim.catalog import devices

    device = devices()[run.device] if run.device else None
    return stack_for(
        run.sm, device.processors if device is not None and device.sm == run.sm else None, STACKS[run.stack]
    )


def simulate(run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None) -> Timeline:
    """What the Run's training steps do to GPU memory, event by event.

    other_order: the other way round, where the framework goes through a Python set of names, whose order differs from
    process to process (Gemma 3).
    strict: a model_type that memsim does not know is refused; else it is taken for a Llama where its fields are
    Llama's, with a warning.
    measured_step: seconds that a step takes in truth, which calibrates the efficiencies of the time estimate.
    Raises InputError, and Unsupported for what memsim cannot simulate yet.
    """
    if isinstance(run.checkpointing, dict) and "budget" in run.checkpointing:
        from memsim.search.budget import simulate_within

        check_towers(run)
        return simulate_within(run, other_order, strict, measured_step)
    for warning in warnings_of(run, strict):
        warnings.warn(warning, stacklevel=2)
    settings = AllocatorSettings.parse(run.allocator, STACKS[run.stack].torch)
    with uncollected():
        model = model_of(run, other_order, strict)
        tape = tape_of_run(run, model)
    linux = run.addresses == "linux"
    answer = allocate(tape, settings, run.device_bytes, linux_addresses=linux)
    unlimited = allocate(tape, settings, UNLIMITED, linux_addresses=linux) if answer.out_of_memory else None
    timeline = Timeline(tape, answer, about(run, model, strict), unlimited)
    return timeline if measured_step is None else calibrated(timeline, measured_step)


def calibrated(timeline: Timeline, seconds: float) -> Timeline:
    """The Timeline with every efficiency times the one factor that makes its last step take so many seconds. Raises
    InputError where no device is so fast.
    """
    time, rates, work = timeline.step_time, timeline.about.rates, timeline.tape.work
    assert time is not None and rates is not None and work is not None
    factor = time.total / seconds
    least = time.total * max(rates.efficiency.matmul, rates.efficiency.attention, rates.efficiency.memory)
    if seconds < least:
        raise InputError(
            f"--measured-step: {duration(seconds)} is less than {rates.device.label} can do by its data sheet "
            f"({duration(least)})"
        )
    tape = replace(timeline.tape, work=work / np.array([factor, factor, 1.0]))
    return Timeline(tape, timeline.answer, replace(timeline.about, rates=rates.scaled(factor)), timeline.unlimited)


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


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector: a simulation makes many small objects and no cycles, and the collector
    would look at them all.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tokens_of(model: Model) -> int:
    """Tokens of one example: a sequence's, an image's, those of encoder and decoder."""
    return model.settings.sequence + (model.settings.targets if model.towers else 0)


def tower_words(model: Model) -> str:
    """Which layers are whose: "encoder 0 to 11, decoder 12 to 23"."""
    return ", ".join(
        f"{tower.name} {span.start} to {span.stop - 1}" for tower, span in zip(model.towers, model.spans(), strict=True)
    )


def batch_words(run: Run, model: Model) -> str:
    """The batch in words."""
    settings = model.settings
    tokens = f"{settings.sequence} + {settings.targets}" if model.towers else f"{settings.sequence}"
    return f"{run.batch.size} × {tokens} tokens" + (
        f" × {run.batch.accumulation} micro-batches" if run.batch.accumulation > 1 else ""
    )


def about(run: Run, model: Model, strict: bool = False) -> About:
    """What the Timeline is of, for its reader; what is not exact in it, too."""
    from memsim.catalog import devices

    packing = packing_of(run.method)
    dora, rank = "DoRA" if run.method.dora else "LoRA", f"rank {run.method.rank}"
    stored = PACKINGS[run.method.quantization]
    methods = {
        "full": "full",
        "lora": f"{dora} {rank}",
        "qlora": f"Q{dora} {rank}, {stored}",
        "ia3": "(IA)³",
        "qia3": f"(IA)³, {stored}",
    }
    method = methods[run.method.kind]
    facts = (
        ("model", run.model_name),
        ("method", method),
        ("batch", batch_words(run, model)),
        ("precision", run.precision + (" with GradScaler" if run.grad_scaler else "")),
        *((("layers", tower_words(model)),) if model.towers else ()),
        ("checkpointing", in_words(run.checkpointing)),
        ("optimizer", run.optimizer + (", in backward" if run.optimizer_in_backward else "")),
        *((("allocator", run.allocator),) if run.allocator else ()),
        *((("assumed", "simulated as Llama"),) if not strict and is_assumed(run.config) else ()),
        *((("approximate", model.approximate),) if model.approximate else ()),
        *(
            (("approximate", f"kernels of {packing.kind.upper()}, not held against recordings"),)
            if isinstance(packing, Packed)
            else ()
        ),
    )
    catalogue = devices()
    named = run.device is not None and catalogue[run.device].memory == run.device_bytes
    return About(
        name=run.name,
        facts=facts,
        run=run.plain(),
        yaml=run.to_yaml(),
        command=f"memsim simulate {run.argument} -o report.html" if run.argument else "",
        device=catalogue[run.device].label if named and run.device else "",
        device_memory=run.device_bytes,
        allocator=run.allocator,
        parameters=model.count(),
        paged_state=paged_state(run.optimizer, model),
        trainable_parameters=model.count(trainable=True),
        layers=len(model.pattern),
        devices=tuple(
            (device.label, device.memory) for device in catalogue.values() if STACKS[run.stack].runs_on(device.sm or 0)
        ),
        tokens=run.batch.size * tokens_of(model) * run.batch.accumulation,
        rates=rates_of(run),
        dtype=AUTOCAST.get(run.precision, WEIGHTS.get(run.precision, run.precision))
        if run.method.kind not in QUANTIZED
        else "bf16",
        versions={name: STACKS[run.stack].versions[name] for name in ("torch", "transformers", "peft")},
    )
