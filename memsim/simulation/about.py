"""Says what a simulated Timeline is of, for its reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.allocator.settings import Settings
from memsim.framework.model import Model
from memsim.models import is_assumed
from memsim.passes.methods import packing_of
from memsim.passes.packed import Packed
from memsim.run.checkpointing import in_words
from memsim.schedule.optimizers.bitsandbytes import paged_state
from memsim.simulation.device import rates_of
from memsim.simulation.support import stands_in
from memsim.stacks.known import STACKS
from memsim.timeline.about import About

if TYPE_CHECKING:
    from memsim.run.job import Run

PACKINGS = {"nf4": "NF4", "int8": "LLM.int8()", "gptq": "GPTQ", "awq": "AWQ"}  # names of method.quantization


def tokens_of(model: Model) -> int:
    """Number of tokens of one example: those of a sequence, of an image, or of encoder and decoder."""
    return model.settings.sequence + (model.settings.targets if model.towers else 0)


def tower_words(model: Model) -> str:
    """Says which layers belong to which tower: "encoder 0 to 11, decoder 12 to 23"."""
    return ", ".join(
        f"{tower.name} {span.start} to {span.stop - 1}" for tower, span in zip(model.towers, model.spans(), strict=True)
    )


def batch_words(run: Run, model: Model) -> str:
    """Returns the batch in words."""
    settings = model.settings
    tokens = f"{settings.sequence} + {settings.targets}" if model.towers else f"{settings.sequence}"
    return f"{run.batch.size} × {tokens} tokens" + (
        f" × {run.batch.accumulation} micro-batches" if run.batch.accumulation > 1 else ""
    )


def about(run: Run, model: Model, strict: bool = False) -> About:
    """Returns what the Timeline is of, for its reader, including what is not exact in it."""
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
        *((("approximate", f"kernels of sm {run.sm} stand in for the device's"),) if stands_in(run) else ()),
    )
    catalogue = devices()
    # an explicit device_memory_gib wins over the device's
    named = catalogue[run.device] if run.device and catalogue[run.device].usable == run.device_bytes else None
    return About(
        name=run.name,
        facts=facts,
        run=run.plain(),
        yaml=run.to_yaml(),
        command=f"memsim simulate {run.argument} -o report.html" if run.argument else "",
        device=named.label if named else "",
        device_memory=run.device_bytes,
        allowed=Settings.parse(run.allocator, STACKS[run.stack].torch).limit(run.device_bytes),
        counted=named.counted if named else "",
        context=named.context if named else 0,
        allocator=run.allocator,
        parameters=model.count(),
        paged_state=paged_state(run.optimizer, model),
        trainable_parameters=model.count(trainable=True),
        layers=len(model.pattern),
        devices=tuple(
            (device.label, device.usable) for device in catalogue.values() if STACKS[run.stack].runs_on(device.sm or 0)
        ),
        tokens=run.batch.size * tokens_of(model) * run.batch.accumulation,
        rates=rates_of(run),
        versions={name: STACKS[run.stack].versions[name] for name in ("torch", "transformers", "peft")},
    )
