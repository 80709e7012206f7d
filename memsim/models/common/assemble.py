"""Assembles a decoder: the outer graph, the layer's graph, and the parameters in module order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.models.common.causal_lm import Parts, causal_lm
from memsim.models.common.config import DecoderConfig
from memsim.models.common.layers import Layer
from memsim.models.common.tied_head import head_parameters

INPUTS = ("hidden_states", "cos", "sin", "position_ids", "attention_mask")
# Keyword arguments of a decoder layer in the order of the call, in which torch.utils.checkpoint releases them. A tuple
# goes from its end.
HOLD = ("attention_mask", "sin", "cos", "position_ids", "hidden_states")
# Positional arguments: tensors in their order, then tuples.
HOLD_POSITIONAL = ("hidden_states", "attention_mask", "position_ids", "sin", "cos")
HOLD_POSITIONS_FIRST = ("attention_mask", "position_ids", "sin", "cos", "hidden_states")  # as in Mistral and Phi-3


def assemble(
    config: DecoderConfig,
    settings: Settings,
    parts: Parts,
    layer: Layer,
    layer_parameters: tuple[Parameter, ...],
    hold: tuple[str, ...] = HOLD,
) -> Model:
    """Returns the Model of a decoder whose layers are all alike."""
    return assemble_kinds(config, settings, parts, ((layer, layer_parameters),), (0,) * config.num_hidden_layers, hold)


def assemble_kinds(
    config: DecoderConfig,
    settings: Settings,
    parts: Parts,
    kinds: tuple[tuple[Layer, tuple[Parameter, ...]], ...],
    pattern: tuple[int, ...],
    hold: tuple[str, ...] = HOLD,
    reads: tuple[tuple[str, ...], ...] = (),
) -> Model:
    """Returns the Model of a decoder with several kinds of layers. `pattern` gives the kind of each layer, `reads` the
    names that each kind reads, in the order of INPUTS.
    """
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(causal_lm(b, config, settings, ids, ids, parts))
    call = next(op for op in outer.operators if op.kind == "layers")
    graphs = tuple(
        layer_graph(config, settings, layer, call, reads[i] if reads else INPUTS) for i, (layer, _) in enumerate(kinds)
    )
    dtype, table = settings.dtype, (config.vocab_size, config.hidden_size)
    frequencies = ["inv_freq"] if settings.stack.inv_freq_once else ["inv_freq", "original_inv_freq"]
    if parts.rotary_by_type:
        frequencies = [f"{kind}_{name}" for kind in sorted(parts.rotary_by_type) for name in frequencies]
    norm = (
        list(parts.final)
        if parts.final or parts.unweighted
        else [Parameter("norm.weight", (config.hidden_size,), dtype, module="norm")]
    )
    rotary = [
        Parameter(
            f"rotary_emb.{name}", ((parts.rotary_dim or config.head_dim) // 2,), "fp32", trainable=False, buffer=True
        )
        for name in frequencies
    ]
    tail = rotary + norm if parts.rotary_first else norm + rotary
    tail += head_parameters(table, dtype, config.tie_word_embeddings)
    if parts.head_bias:
        tail.append(Parameter("lm_head.bias", (config.vocab_size,), dtype, module="linear"))
    scale = (
        (Parameter("embed_tokens.embed_scale", (), settings.created, trainable=False, buffer=True),)
        if parts.embed_scale
        else ()
    )
    return Model(
        before=(Parameter("embed_tokens.weight", table, dtype, module="embedding"), *scale),
        layers=tuple(parameters for _, parameters in kinds),
        after=tuple(tail),
        pattern=pattern,
        outer=outer,
        layer_graphs=graphs,
        settings=settings,
        hold_inputs=HOLD_POSITIONAL if settings.stack.checkpoints_positional_arguments else hold,
    )


def layer_graph(
    config: DecoderConfig, settings: Settings, layer: Layer, call: Operator, reads: tuple[str, ...]
) -> LayerGraph:
    """Returns the graph of a kind of layer, called with the inputs of the operator "layers"."""
    inner = Builder("decoder layer", settings.technique)
    names: tuple[str, ...] = call.attrs.get("names", INPUTS)  # type: ignore[assignment]
    arguments = layer_inputs(inner, call, names, reads)
    hidden_states, cos, sin, _, mask = reads
    turn = arguments[cos]  # also sin, where complex numbers are both
    hidden = layer(
        inner, config, settings, arguments[hidden_states], turn, arguments.get(sin, turn), arguments.get(mask)
    )
    return inner.finish(hidden)


def layer_inputs(
    b: Builder, call: Operator, names: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Returns the tensors that the operator "layers" hands to a layer, by name (only those `wanted`).

    The hidden states are as every layer but the first gets them: from a layer that trains.
    """
    specs = dict(zip(names, call.inputs, strict=False))
    specs["hidden_states"] = replace(specs["hidden_states"], requires_grad=call.outputs[0].requires_grad, leaf=False)
    return {name: b.input(name, spec) for name, spec in specs.items() if wanted is None or name in wanted}


release_in_slot_order(__name__)
