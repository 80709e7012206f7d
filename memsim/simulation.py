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
from memsim.builder import PLAIN, Technique
from memsim.cost import Rates
from memsim.efficiency import Efficiency
from memsim.errors import InputError, Unsupported
from memsim.models import build, is_assumed
from memsim.models.model import Model, Settings
from memsim.passes.checkpoint import checkpoint_every_layer, require_input_grads
from memsim.passes.freeze import Freeze, frozen
from memsim.passes.methods import ADAPTERS, adapted, check_method, lora_of, with_ia3
from memsim.passes.quantize import Nf4
from memsim.schedule import record
from memsim.schedule.optimizers import Optimizer
from memsim.schedule.stack import Stack, stack_for
from memsim.schedule.training import Plan
from memsim.stacks import STACKS, Software
from memsim.tape import Tape
from memsim.timeline import About, Timeline
from memsim.words import duration

if TYPE_CHECKING:
    from memsim.run import Run

PRECISIONS = ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16", "tf32")
AUTOCAST = {"amp-bf16": "bf16", "amp-fp16": "fp16"}
WEIGHTS = {"amp-bf16": "fp32", "amp-fp16": "fp32", "tf32": "fp32"}  # precision → dtype of the weights, where it is not its own name
OPTIMIZERS = (
    "adamw",
    "adamw-fused",
    "adamw-for-loop",
    "sgd",
    "sgd-momentum",
    "adafactor",
    "adagrad",
    "rmsprop",
    "nadam",
    "adamw-8bit",
    "paged-adamw-8bit",
    "paged-adamw",
    "lion-8bit",
)
UNLIMITED = 1 << 57  # bytes


def model_of(run: Run, other_order: bool = False, strict: bool = False) -> Model:
    """The Run's model after every pass. Raises InputError, and Unsupported for what memsim cannot simulate yet."""
    check_supported(run)
    method = run.method
    model_type = str(run.config.get("model_type"))
    lora = lora_of(method, model_type) if method.kind in ADAPTERS else None
    nf4 = Nf4(method.double_quant, method.casts) if method.kind == "qlora" else None
    loaded = WEIGHTS.get(run.precision, run.precision)
    precision = "amp-bf16" if nf4 else run.precision  # what is not quantized is cast to fp32, and runs under autocast
    software = STACKS[run.stack]
    tells = run.checkpointing == "full" and not (software.checkpoints_frozen_inputs and method.kind == "full") and not (nf4 and software.qlora_input_is_frozen)
    settings = Settings(
        batch=run.batch.size,
        sequence=run.batch.sequence,
        dtype=loaded if nf4 and nf4.casts == "none" else WEIGHTS.get(precision, precision),
        attention=run.attention,
        sm=run.sm,
        stack=STACKS[run.stack],
        technique=replace(PLAIN, autocast=AUTOCAST.get(precision), inputs_require_grad=tells),
        loaded=loaded if nf4 else "",
        other_order=other_order,
        routing=run.routing if isinstance(run.routing, str) else run.routing["imbalance"],
    )

    def built(technique: Technique) -> Model:
        technique = replace(technique, autocast=AUTOCAST.get(precision), inputs_require_grad=tells)
        return build(run.config, replace(settings, technique=technique), strict)

    if lora is not None:
        model = adapted(built, lora, nf4, software, model_type)
    else:
        model = with_ia3(built, method, model_type) if method.kind == "ia3" else built(PLAIN)
    if run.train.only or run.train.freeze:
        if method.kind != "full":
            raise InputError(f"train: goes with method.kind full; with {method.kind} the adapters train, and nothing else")

        def again(trains: Callable[[str], bool | None]) -> Model:
            return built(replace(PLAIN, trainable=lambda name: bool(trains(name))))

        model = frozen(model, Freeze(run.train.only, run.train.freeze), again)
    if run.checkpointing == "full":
        model = checkpoint_every_layer(model)
        if tells:
            model = require_input_grads(model)
    return model


def check_supported(run: Run) -> None:
    """Raises Unsupported for a Run that is valid but not modelled yet, naming the key."""
    from memsim.catalog import devices

    for key, value, known in (("precision", run.precision, PRECISIONS), ("optimizer", run.optimizer, OPTIMIZERS)):
        if value not in known:
            raise Unsupported(f"{key}: {value} is not supported yet; {', '.join(known)} are")
    if run.method.kind == "qlora" and run.precision == "amp-fp16":
        raise Unsupported("precision: amp-fp16 with method qlora, which computes in bf16, is not supported; bf16 is")
    if run.method.kind == "qlora" and run.precision != "bf16" and run.method.casts != "peft":
        raise Unsupported(f"method.casts: {run.method.casts} with precision {run.precision} is not supported; with bf16 it is")
    if run.fsdp > 1:
        raise Unsupported(f"fsdp: {run.fsdp} is not supported yet; 1 is")
    if run.device is not None and devices()[run.device].sm is None:
        raise Unsupported(f"device: {run.device} is not NVIDIA's, and its kernels are not modelled; device_memory_gib asks whether a run fits its memory")
    check_stack(run, STACKS[run.stack])
    check_method(run.method, str(run.config.get("model_type")), STACKS[run.stack])


def check_stack(run: Run, stack: Software) -> None:
    """Raises Unsupported for what is not held against recordings of the stack."""
    if not stack.runs_on(run.sm):
        raise Unsupported(f"sm: {run.sm} is not supported with torch {stack.torch}; {stack.devices} are")
    asked = {
        "model_type": str(run.config.get("model_type")),
        "method.kind": run.method.kind,
        "precision": run.precision,
        "optimizer": run.optimizer,
        "attention": run.attention,
        "checkpointing": run.checkpointing,
        "train": "some" if run.train.only or run.train.freeze else "all",
    }
    for key, values in stack.held.items():
        if asked[key] not in values:
            raise Unsupported(f"{key}: {asked[key]} with stack {stack.name} is not supported yet; {', '.join(values)} are")
    if stack.loss_slices_logits and run.batch.sequence == 1:
        raise Unsupported(f"batch.sequence: 1 with stack {stack.name} leaves no token to learn from; 2 and more are supported")


def tape_of_run(run: Run, model: Model | None = None) -> Tape:
    """Every allocator request of the Run: its load and its steps."""
    model = model or model_of(run)
    plan = Plan(run.steps, run.batch.accumulation, run.clip_grad_norm, Optimizer(run.optimizer), rates_of(run))
    return record(model, plan, stack_of(run))


def rates_of(run: Run) -> Rates:
    """What the time estimate goes by: the Run's device, or of the catalogue's the one that is nearest in compute capability and memory."""
    from memsim.catalog import devices

    known = devices()
    if run.device is not None:
        device = known[run.device]
    else:
        device = min((d for d in known.values() if d.sm is not None), key=lambda d: (abs((d.sm or 0) - run.sm), abs(d.memory - run.device_bytes)))
    e = run.efficiency
    return Rates(device, Efficiency(e.matmul, e.attention, e.memory, e.pcie, e.launch_us / 1e6), run.precision == "tf32")


def stack_of(run: Run) -> Stack:
    """The stack on the Run's device, with its own multiprocessors where it is of the catalogue and `sm` is not overridden."""
    from memsim.catalog import devices

    device = devices()[run.device] if run.device else None
    return stack_for(run.sm, device.processors if device is not None and device.sm == run.sm else None, STACKS[run.stack])


def simulate(run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None) -> Timeline:
    """What the Run's training steps do to GPU memory, event by event.

    other_order: the other way round, where the framework goes through a Python set of names, whose order differs from process to process (Gemma 3).
    strict: a model_type that memsim does not know is refused; else it is taken for a Llama where its fields are Llama's, with a warning.
    measured_step: seconds that a step takes in truth, which calibrates the efficiencies of the time estimate.
    Raises InputError, and Unsupported for what memsim cannot simulate yet.
    """
    if not strict and is_assumed(run.config):
        warnings.warn(assumed(run), stacklevel=2)
    settings = AllocatorSettings.parse(run.allocator, STACKS[run.stack].torch)
    with uncollected():
        model = model_of(run, other_order, strict)
        tape = tape_of_run(run, model)
    answer = allocate(tape, settings, run.device_bytes)
    unlimited = allocate(tape, settings, UNLIMITED) if answer.out_of_memory else None
    timeline = Timeline(tape, answer, about(run, model), unlimited)
    return timeline if measured_step is None else calibrated(timeline, measured_step)


def calibrated(timeline: Timeline, seconds: float) -> Timeline:
    """The Timeline with every efficiency times the one factor that makes its last step take so many seconds. Raises InputError where no device is so fast."""
    time, rates, work = timeline.step_time, timeline.about.rates, timeline.tape.work
    assert time is not None and rates is not None and work is not None
    factor = time.total / seconds
    least = time.total * max(rates.efficiency.matmul, rates.efficiency.attention, rates.efficiency.memory)
    if seconds < least:
        raise InputError(f"--measured-step: {duration(seconds)} is less than {rates.device.label} can do by its data sheet ({duration(least)})")
    tape = replace(timeline.tape, work=work / np.array([factor, factor, 1.0]))
    return Timeline(tape, timeline.answer, replace(timeline.about, rates=rates.scaled(factor)), timeline.unlimited)


def assumed(run: Run) -> str:
    """The warning for a model that is taken for a Llama."""
    return f"model_type {run.config.get('model_type')!r} is not known: simulated as Llama, whose fields it has; what else it does is not in the figures"


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector: a simulation makes many small objects and no cycles, and the collector would look at them all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def about(run: Run, model: Model) -> About:
    """What the Timeline is of, for its reader."""
    from memsim.catalog import devices

    dora = "DoRA" if run.method.dora else "LoRA"
    method = {"full": "full", "lora": f"{dora} rank {run.method.rank}", "qlora": f"Q{dora} rank {run.method.rank}, NF4", "ia3": "(IA)³"}[run.method.kind]
    facts = (
        ("model", run.model_name),
        ("method", method),
        ("batch", f"{run.batch.size} × {run.batch.sequence} tokens" + (f" × {run.batch.accumulation} micro-batches" if run.batch.accumulation > 1 else "")),
        ("precision", run.precision),
        ("checkpointing", run.checkpointing),
        ("optimizer", run.optimizer),
        *((("allocator", run.allocator),) if run.allocator else ()),
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
        trainable_parameters=model.count(trainable=True),
        layers=len(model.pattern),
        devices=tuple((device.label, device.memory) for device in catalogue.values() if STACKS[run.stack].runs_on(device.sm or 0)),
        tokens=run.batch.size * run.batch.sequence * run.batch.accumulation,
        rates=rates_of(run),
        dtype=AUTOCAST.get(run.precision, WEIGHTS.get(run.precision, run.precision)) if run.method.kind != "qlora" else "bf16",
        versions={name: STACKS[run.stack].versions[name] for name in ("torch", "transformers", "peft")},
    )
