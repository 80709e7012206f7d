"""Run → Model: the family's graphs, and every pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported
from memsim.framework.builder import PLAIN, Technique
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models import build, saved_by_task, takes_tokens
from memsim.passes.checkpoint import checkpointed, enables_input_grads, require_input_grads
from memsim.passes.freeze import Freeze, frozen
from memsim.passes.int8 import Int8
from memsim.passes.methods import adapted, lora_of, packing_of, with_ia3
from memsim.run.conflicts import ADAPTERS, VECTORS
from memsim.simulation.precision import AUTOCAST, WEIGHTS
from memsim.simulation.support import check_supported
from memsim.stacks.known import STACKS

if TYPE_CHECKING:
    from memsim.run.job import Run


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
