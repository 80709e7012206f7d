"""T5 and Flan-T5 (transformers/models/t5/modeling_t5.py): the model around its layers (t5_layers.py), which are an
encoder's and a decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter, Tower
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.models.common.config import integer, probability
from memsim.models.common.encoder import activation_of, bidirectional_mask
from memsim.models.common.losses import cross_entropy
from memsim.models.common.masks import eager_mask
from memsim.models.t5_layers import BIAS, CROSS_BIAS, ENCODED, ENCODED_MASK, T5, block, layer_norm, layer_parameters

# positional arguments, which a checkpoint lets go of from their end
HOLD = (CROSS_BIAS, ENCODED_MASK, ENCODED, BIAS, "attention_mask", "hidden_states")
TABLE = "shared.weight"


@module_call
def shift_right(b: Builder, settings: Settings, labels: Tensor) -> Tensor:
    """T5PreTrainedModel._shift_right."""
    batch, length = labels.shape
    shifted_input_ids = F.create(b, "shifted_input_ids", (batch, length), "int64")
    cloned = F.create(b, "clone", (batch, length - 1), "int64")
    del cloned
    ignored = F.create(b, "ignored", (batch, length), "bool")
    del ignored
    return shifted_input_ids


def carried(config: T5, settings: Settings, decodes: bool) -> dict[str, TensorSpec]:
    """What a stack's first layer hands to the others: position biases [1, H, Q, K]. Only shapes and dtypes matter."""
    queries = settings.targets if decodes else settings.sequence
    spec = TensorSpec(
        0, 0, (1, config.heads, queries, queries), (0, 1, queries * config.heads, config.heads), settings.dtype, True
    )
    if not decodes:
        return {BIAS: spec}
    return {BIAS: spec, CROSS_BIAS: replace(spec, shape=(1, config.heads, queries, settings.sequence))}


@module_call
def stack(
    b: Builder, config: T5, settings: Settings, input_ids: Tensor, encoder_hidden_states: Tensor | None = None
) -> Tensor:
    """T5Stack.forward: [B, S] → [B, S, H]."""
    decodes = encoder_hidden_states is not None
    with b.module("decoder" if decodes else "encoder"):
        weight = b.parameter(TABLE, (config.vocabulary, config.hidden), settings.dtype, True)
        inputs_embeds = b.op("embedding", input_ids, weight, label="embed_tokens", input_embeddings=True)
        length = input_ids.shape[1]
        if not decodes:
            mask = bidirectional_mask(b, settings, inputs_embeds.dtype, length, length)
        else:
            mask = causal_mask(b, settings, inputs_embeds.dtype)
        encoded_mask = (
            bidirectional_mask(b, settings, inputs_embeds.dtype, length, settings.sequence) if decodes else None
        )
        hidden_states = dropout(b, inputs_embeds, config.p)
        others = {"attention_mask": mask, ENCODED: encoder_hidden_states, ENCODED_MASK: encoded_mask}
        given = {name: tensor for name, tensor in others.items() if tensor is not None}
        names, carries = ("hidden_states", *given), carried(config, settings, decodes)
        # `wo` stays in fp32 then, and what it is added to follows
        dtype = "fp32" if settings.dtype == "fp16" else hidden_states.dtype
        hidden_states, position_bias, *cross = b.run(
            "layers",
            hidden_states,
            *given.values(),
            names=names,
            tower=int(decodes),
            carries=carries,
            dtype=dtype,
            trains=True,
        )
        del others
        del given
        hidden_states = layer_norm(
            b, hidden_states, f"{'decoder' if decodes else 'encoder'}.final_layer_norm", settings.dtype
        )
        hidden_states = dropout(b, hidden_states, config.p)
        del mask  # arguments of forward die before its other locals
        del inputs_embeds
        del encoded_mask
        del position_bias
        del cross
        return hidden_states


def causal_mask(b: Builder, settings: Settings, dtype: str) -> Tensor | None:
    """masking_utils.create_causal_mask without a mask of the batch: nothing for sdpa, which makes it with the position
    bias.
    """
    if settings.attention != "eager":
        return None
    with b.module("causal_mask"), b.no_grad():
        return eager_mask(b, replace(settings, sequence=settings.targets), dtype, None)


@module_call
def conditional_generation(b: Builder, config: T5, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """T5ForConditionalGeneration.forward with labels; returns the loss."""
    encoder_outputs = stack(b, config, settings, input_ids)
    decoder_input_ids = shift_right(b, settings, labels)
    sequence_output = stack(b, config, settings, decoder_input_ids, encoder_outputs)
    decoder_outputs = sequence_output
    if config.scaled:
        sequence_output = b.op("mul_scalar", sequence_output)
    weight = b.parameter(TABLE, (config.vocabulary, config.hidden), settings.dtype, True)
    lm_logits = b.op("linear", sequence_output, weight, label="lm_head", module="lm_head")
    rows = settings.batch * settings.targets
    loss = cross_entropy(
        b, b.op("view", lm_logits, shape=(rows, config.vocabulary)), b.op("view", labels, shape=(rows,))
    )
    del decoder_input_ids  # an argument of forward, then its other locals
    del decoder_outputs
    del sequence_output
    del lm_logits  # which the result holds, and what the encoder made
    del encoder_outputs
    return loss


def read_config(fields: Mapping[str, object], settings: Settings) -> T5:
    """The fields with T5Config's defaults. Raises InputError and Unsupported."""
    given = {key: value for key, value in fields.items() if value is not None}
    projection = str(given.get("feed_forward_proj", "relu"))
    gate, _, act = projection.rpartition("-")
    if gate not in ("", "gated"):
        raise InputError(f"model.feed_forward_proj: {projection!r} is neither an activation nor gated-ACTIVATION")
    layers = integer(given, "num_layers", 6)
    return T5(
        hidden=integer(given, "d_model", 512),
        inner=integer(given, "d_ff", 2048),
        head=integer(given, "d_kv", 64),
        heads=integer(given, "num_heads", 8),
        layers=layers,
        decoder_layers=integer(given, "num_decoder_layers", layers),
        vocabulary=integer(given, "vocab_size", 32128),
        buckets=integer(given, "relative_attention_num_buckets", 32),
        activation=activation_of(
            {"feed_forward_proj": "gelu_new" if projection == "gated-gelu" else act}, "feed_forward_proj", "relu"
        ),
        gated=gate == "gated",
        p=probability(given, "dropout_rate", 0.1),
        scaled=given.get("tie_word_embeddings") is not False,
        wo_dtype="fp32" if settings.dtype == "fp16" else settings.dtype,
    )


def layer_graph(
    config: T5, settings: Settings, call: Operator, decodes: bool, first: LayerGraph | None = None
) -> LayerGraph:
    """The graph of a stack's first layer, or, with that, of the others, which get what it hands on."""
    b = Builder(f"{'first ' if first is None else ''}{'decoder' if decodes else 'encoder'} layer", settings.technique)
    names: tuple[str, ...] = call.attrs["names"]  # type: ignore[assignment]
    specs = dict(zip(names, call.inputs, strict=True))
    specs["hidden_states"] = replace(specs["hidden_states"], requires_grad=True, leaf=False)
    if first is not None:
        specs["hidden_states"] = replace(specs["hidden_states"], dtype=first.outputs[0].dtype)
        specs |= dict(zip(first.results[1:], first.outputs[1:], strict=True))
    given = {
        name: b.input(name, specs[name])
        for name in ("hidden_states", "attention_mask", BIAS, ENCODED, ENCODED_MASK, CROSS_BIAS)
        if name in specs
    }
    hidden, bias, cross = block(b, config, settings, decodes, given)
    made = {BIAS: bias, CROSS_BIAS: cross} if first is None else {}
    results = {name: tensor for name, tensor in made.items() if tensor is not None}
    graph = b.finish(hidden, *results.values())
    graph.results = ("hidden_states", *results)
    return graph


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config, dtype = read_config(fields, settings), settings.dtype
    if settings.attention == "flash_attention_2":
        raise InputError(
            "attention: flash_attention_2 does not run with t5, whose positions are a bias that it cannot take; sdpa "
            "and eager do"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    outer = b.finish(
        conditional_generation(
            b, config, settings, ids, b.input_tensor("labels", (settings.batch, settings.targets), "int64")
        )
    )
    calls = [op for op in outer.operators if op.kind == "layers"]
    graphs: list[LayerGraph] = []
    parameters: list[tuple[Parameter, ...]] = []
    pattern: list[int] = []
    for call, decodes, count in zip(calls, (False, True), (config.layers, config.decoder_layers), strict=True):
        first = layer_graph(config, settings, call, decodes)
        graphs.append(first)
        parameters.append(layer_parameters(config, settings, decodes, first=True))
        pattern.append(len(graphs) - 1)
        if count > 1:
            graphs.append(layer_graph(config, settings, call, decodes, first))
            parameters.append(layer_parameters(config, settings, decodes, first=False))
            pattern += [len(graphs) - 1] * (count - 1)
    norms = [
        Parameter(f"{name}.final_layer_norm.weight", (config.hidden,), dtype, module="norm")
        for name in ("encoder", "decoder")
    ]
    return Model(
        before=(Parameter(TABLE, (config.vocabulary, config.hidden), dtype, module="embedding"),),
        layers=tuple(parameters),
        after=(norms[1],),
        pattern=tuple(pattern),
        outer=outer,
        layer_graphs=tuple(graphs),
        settings=settings,
        towers=(Tower("encoder", config.layers, (norms[0],)), Tower("decoder", config.decoder_layers)),
        hold_inputs=HOLD,
        positional=len(HOLD),
    )


release_in_slot_order(__name__)
