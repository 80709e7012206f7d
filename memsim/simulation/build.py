"""Run → Model: the family's graphs, and every pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from memsim.errors import InputError
from memsim.framework.builder import PLAIN, Technique
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models import build, saved_by_task, takes_tokens
from memsim.passes.checkpoint import checkpointed, enables_input_grads, require_input_grads
from memsim.passes.freeze import Freeze, frozen
from memsim.passes.int8 import Int8
from memsim.passes.methods import Quantization, adapted, lora_of, packing_of, with_ia3
from memsim.run.conflicts import ADAPTERS, VECTORS
from memsim.simulation.precision import AUTOCAST, WEIGHTS
from memsim.simulation.support import check_checkpoints, check_supported
from memsim.stacks.known import STACKS

if TYPE_CHECKING:
    from memsim.run.job import Run


def model_of(run: Run, other_order: bool = False, strict: bool = False) -> Model:
    """Returns the Run's model after every pass. Raises InputError, and Unsupported for what memsim
    cannot simulate yet.
    """
    check_supported(run)
    packing = packing_of(run.method)
    settings = settings_of(run, packing, other_order)
    if isinstance(packing, Int8):
        packing = replace(packing, watched=settings.watched)

    def built(technique: Technique) -> Model:
        common = settings.technique
        technique = replace(technique, autocast=common.autocast, inputs_require_grad=common.inputs_require_grad)
        return build(run.config, replace(settings, technique=technique), strict)

    model = with_method(run, packing, built)
    if run.train.only or run.train.freeze:
        model = partly_frozen(run, model, built)
    model = checkpointed(model, run.checkpointing)
    check_checkpoints(run, model, packing)
    return require_input_grads(model) if settings.technique.inputs_require_grad else model


def settings_of(run: Run, packing: Quantization | None, other_order: bool) -> Settings:
    """Returns the settings that the model's code asks for while it executes, with everything that all
    techniques share.
    """
    loaded = WEIGHTS.get(run.precision, run.precision)
    # parameters that are not quantized are cast to fp32, and run under autocast
    precision = "amp-bf16" if packing else run.precision
    technique = replace(
        PLAIN, autocast=AUTOCAST.get(precision), inputs_require_grad=tells_inputs(run, packing is not None)
    )
    return Settings(
        batch=run.batch.size,
        sequence=run.batch.sequence,
        target=run.batch.target or 0,
        dtype=loaded if packing and packing.casts == "none" else WEIGHTS.get(precision, precision),
        attention=run.attention,
        padding=run.batch.padding,
        sm=run.sm,
        stack=STACKS[run.stack],
        technique=technique,
        loaded=loaded if packing else "",
        other_order=other_order,
        watched=run.checkpointing == "selective"
        or (isinstance(run.checkpointing, dict) and "save" in run.checkpointing),
        routing=run.routing if isinstance(run.routing, str) else run.routing["imbalance"],
    )


def tells_inputs(run: Run, quantized: bool) -> bool:
    """True if the embeddings' output is marked as requiring a gradient, as checkpoints need where nothing before them
    trains (transformers' gradient_checkpointing_enable, PEFT's prepare_model_for_kbit_training).
    """
    software, method = STACKS[run.stack], run.method
    if not enables_input_grads(run.checkpointing):
        return False
    # transformers' switch marks only inputs that are tokens, PEFT's preparation those of reentrant checkpoints
    if not takes_tokens(run.config) and method.kind not in ("lora", "ia3"):
        if method.kind == "full" or run.checkpointing != "reentrant":
            return False
    if software.checkpoints_frozen_inputs and method.kind == "full":
        return False
    return not (quantized and software.qlora_input_is_frozen and run.checkpointing != "reentrant")


def with_method(run: Run, packing: Quantization | None, built: Callable[[Technique], Model]) -> Model:
    """Returns the model with its adapters or vectors, and quantized, as the Run's method says."""
    method, software, model_type = run.method, STACKS[run.stack], str(run.config.get("model_type"))
    if method.kind in ADAPTERS:
        lora = lora_of(method, model_type, software, saved_by_task(run.config))
        return adapted(built, lora, packing, software, model_type)
    if method.kind in VECTORS:
        return with_ia3(built, method, packing, software, model_type)  # type: ignore[arg-type]
    return built(PLAIN)


def partly_frozen(run: Run, model: Model, built: Callable[[Technique], Model]) -> Model:
    """Returns the model with only some parameters that train. Raises InputError."""
    if run.method.kind != "full":
        raise InputError(
            f"train: goes with method.kind full; with {run.method.kind} the adapters train, and nothing else"
        )

    def again(trains: Callable[[str], bool | None], towers: frozenset[int]) -> Model:
        return built(replace(PLAIN, trainable=lambda name: bool(trains(name)), frozen_towers=towers))

    return frozen(model, Freeze(run.train.only, run.train.freeze), again)
