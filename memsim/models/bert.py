"""BERT (transformers/models/bert/modeling_bert.py), trained to fill in masked tokens or to tell classes of sequences
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.config import integer, probability
from memsim.models.common.encoder import act, activation_of, attend, bidirectional_mask, classes_of, linear_parameters
from memsim.models.common.losses import cross_entropy
from memsim.models.common.norms import layer_norm, norm_parameters
from memsim.models.tasks import task_of

NAMES = ("hidden_states", "attention_mask")
HOLD = ("attention_mask", "hidden_states")  # positional arguments, which a checkpoint lets go of from their end
DECODER = "cls.predictions.decoder"  # the head of the masked LM, tied to the embeddings


@dataclass(frozen=True)
class Bert:
    """The fields that decide what executes; p are probabilities of dropout."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    types: int
    activation: str
    hidden_p: float
    attention_p: float
    classifier_p: float
    classes: int  # 0: a masked LM


@module_call
def embeddings(b: Builder, config: Bert, settings: Settings, input_ids: Tensor) -> Tensor:
    """BertEmbeddings.forward: [B, S] → [B, S, H]."""
    with b.module("embeddings"):
        batch, sequence, dtype = settings.batch, settings.sequence, settings.dtype

        def table(name: str, rows: int) -> Tensor:
            return b.parameter(f"embeddings.{name}.weight", (rows, config.hidden), dtype, True)

        buffer = b.parameter("embeddings.position_ids", (1, config.positions), "int64", False)
        position_ids = b.op("slice", buffer, length=sequence)
        gathered = F.create(b, "token_type_ids", (1, sequence), "int64")
        token_type_ids = b.op("expand", gathered, shape=(batch, sequence)) if batch > 1 else gathered
        inputs_embeds = b.op(
            "embedding",
            input_ids,
            table("word_embeddings", config.vocabulary),
            label="word_embeddings",
            input_embeddings=True,
        )
        token_type_embeddings = b.op(
            "embedding", token_type_ids, table("token_type_embeddings", config.types), label="token_type_embeddings"
        )
        embeddings = b.op("add", inputs_embeds, token_type_embeddings)
        position_embeddings = b.op(
            "embedding", position_ids, table("position_embeddings", config.positions), label="position_embeddings"
        )
        embeddings = b.op("add", embeddings, position_embeddings)
        embeddings = layer_norm(b, embeddings, "LayerNorm", dtype)
        embeddings = dropout(b, embeddings, config.hidden_p)
        # Arguments of forward die first, then its other locals in the order of their slots.
        del position_ids
        del inputs_embeds
        del token_type_ids
        del gathered
        del token_type_embeddings
        del position_embeddings
        return embeddings


@module_call
def self_attention(
    b: Builder, config: Bert, settings: Settings, hidden_states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """BertSelfAttention.forward."""
    with b.module("self"):
        batch, sequence, hidden = hidden_states.shape

        query_layer = F.heads(b, hidden_states, "query", config.heads, hidden // config.heads, settings.dtype, True)
        key_layer = F.heads(b, hidden_states, "key", config.heads, hidden // config.heads, settings.dtype, True)
        value_layer = F.heads(b, hidden_states, "value", config.heads, hidden // config.heads, settings.dtype, True)
        attn_output, attn_weights = attend(b, settings, query_layer, key_layer, value_layer, mask, config.attention_p)
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, hidden))
        return attn_output, attn_weights


@module_call
def output(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    """BertSelfOutput.forward, BertOutput.forward."""
    with b.module("output"):
        hidden_states = F.linear(b, hidden_states, "dense", config.hidden, settings.dtype, True)
        hidden_states = dropout(b, hidden_states, config.hidden_p)
        hidden_states = layer_norm(
            b, b.op("add", hidden_states, input_tensor, label="residual"), "LayerNorm", settings.dtype
        )
        return hidden_states


@module_call
def attention(
    b: Builder, config: Bert, settings: Settings, hidden_states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """BertAttention.forward."""
    with b.module("attention"):
        attention_output, attn_weights = self_attention(b, config, settings, hidden_states, mask)
        attention_output = output(b, config, settings, attention_output, hidden_states)
        return attention_output, attn_weights


@module_call
def intermediate(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor) -> Tensor:
    """BertIntermediate.forward."""
    with b.module("intermediate"):
        hidden_states = F.linear(b, hidden_states, "dense", config.inner, settings.dtype, True)
        hidden_states = act(b, hidden_states, config.activation)
        return hidden_states


def feed_forward_chunk(b: Builder, config: Bert, settings: Settings, attention_output: Tensor) -> Tensor:
    """BertLayer.feed_forward_chunk."""
    intermediate_output = intermediate(b, config, settings, attention_output)
    layer_output = output(b, config, settings, intermediate_output, attention_output)
    return layer_output


@module_call
def layer(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """BertLayer.forward."""
    self_attention_output, _ = attention(b, config, settings, hidden_states, mask)
    attention_output = self_attention_output
    layer_output = feed_forward_chunk(b, config, settings, attention_output)
    return layer_output


@module_call
def model(b: Builder, config: Bert, settings: Settings, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """BertModel.forward: last_hidden_state [B, S, H], and pooler_output [B, H] where there is a pooler."""
    embedding_output = embeddings(b, config, settings, input_ids)
    mask = bidirectional_mask(b, settings, embedding_output.dtype, settings.sequence, settings.sequence)
    sequence_output = b.op(
        "layers",
        embedding_output,
        *([] if mask is None else [mask]),
        names=NAMES[: 1 if mask is None else 2],
        trains=True,
        held=True,
    )
    pooled_output = pooler(b, config, settings, sequence_output) if config.classes else None
    del mask  # an argument of forward, before its other locals
    return sequence_output, pooled_output


@module_call
def pooler(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor) -> Tensor:
    """BertPooler.forward."""
    with b.module("pooler"):
        first_token_tensor = b.op("select", hidden_states, dim=1)
        pooled_output = F.linear(b, first_token_tensor, "dense", config.hidden, settings.dtype, True)
        pooled_output = b.op("tanh", pooled_output)
        return pooled_output


@module_call
def transform(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor) -> Tensor:
    """BertPredictionHeadTransform.forward."""
    with b.module("transform"):
        hidden_states = F.linear(b, hidden_states, "dense", config.hidden, settings.dtype, True)
        hidden_states = act(b, hidden_states, config.activation)
        hidden_states = layer_norm(b, hidden_states, "LayerNorm", settings.dtype)
        return hidden_states


@module_call
def predictions(b: Builder, config: Bert, settings: Settings, hidden_states: Tensor) -> Tensor:
    """BertOnlyMLMHead.forward, BertLMPredictionHead.forward."""
    with b.module("cls.predictions"):
        hidden_states = transform(b, config, settings, hidden_states)
        weight = b.parameter(
            "embeddings.word_embeddings.weight", (config.vocabulary, config.hidden), settings.dtype, True
        )
        bias = b.parameter("cls.predictions.bias", (config.vocabulary,), settings.dtype, True)
        hidden_states = b.op("linear", hidden_states, weight, bias, label="decoder", module=DECODER)
        return hidden_states


@module_call
def masked_lm(b: Builder, config: Bert, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """BertForMaskedLM.forward with labels; returns the loss."""
    outputs = model(b, config, settings, input_ids)
    sequence_output = outputs[0]
    prediction_scores = predictions(b, config, settings, sequence_output)
    rows = settings.batch * settings.sequence
    masked_lm_loss = cross_entropy(
        b, b.op("view", prediction_scores, shape=(rows, config.vocabulary)), b.op("view", labels, shape=(rows,))
    )
    return masked_lm_loss


@module_call
def sequence_classification(b: Builder, config: Bert, settings: Settings, input_ids: Tensor, labels: Tensor) -> Tensor:
    """BertForSequenceClassification.forward with labels; returns the loss."""
    outputs = model(b, config, settings, input_ids)
    pooled_output = outputs[1]
    assert pooled_output is not None
    pooled_output = dropout(b, pooled_output, config.classifier_p)
    logits = F.linear(b, pooled_output, "classifier", config.classes, settings.dtype, True)
    loss = cross_entropy(
        b, b.op("view", logits, shape=(settings.batch, config.classes)), b.op("view", labels, shape=(settings.batch,))
    )
    return loss


def layer_parameters(config: Bert, dtype: str) -> tuple[Parameter, ...]:
    """A layer's parameters in module order."""
    h, inner = config.hidden, config.inner
    rows = [p for name in ("query", "key", "value") for p in linear_parameters(f"attention.self.{name}", h, h, dtype)]
    rows += [
        *linear_parameters("attention.output.dense", h, h, dtype),
        *norm_parameters("attention.output.LayerNorm", h, dtype),
    ]
    rows += linear_parameters("intermediate.dense", inner, h, dtype)
    return (*rows, *linear_parameters("output.dense", h, inner, dtype), *norm_parameters("output.LayerNorm", h, dtype))


def read_config(fields: Mapping[str, object]) -> Bert:
    """The fields with BertConfig's defaults. Raises InputError and Unsupported."""
    hidden, heads = integer(fields, "hidden_size", 768), integer(fields, "num_attention_heads", 12)
    if hidden % heads:
        raise InputError(f"model.num_attention_heads: {heads} heads do not divide hidden_size {hidden}")
    for key, plain in (
        ("is_decoder", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
        ("chunk_size_feed_forward", 0),
    ):
        if fields.get(key, plain) != plain:
            raise Unsupported(f"model.{key}: {fields[key]} is not supported yet; {plain} is")
    hidden_p = probability(fields, "hidden_dropout_prob", 0.1)
    given = {key: value for key, value in fields.items() if value is not None}
    return Bert(
        hidden=hidden,
        inner=integer(fields, "intermediate_size", 3072),
        layers=integer(fields, "num_hidden_layers", 12),
        heads=heads,
        vocabulary=integer(fields, "vocab_size", 30522),
        positions=integer(fields, "max_position_embeddings", 512),
        types=integer(fields, "type_vocab_size", 2),
        activation=activation_of(fields, "hidden_act", "gelu"),
        hidden_p=hidden_p,
        attention_p=probability(fields, "attention_probs_dropout_prob", 0.1),
        classifier_p=probability(given, "classifier_dropout", hidden_p),
        classes=classes_of(fields) if task_of(fields) == "BertForSequenceClassification" else 0,
    )


def saved_by_task(fields: Mapping[str, object]) -> tuple[str, ...]:
    """What PEFT trains as a whole with task_type SEQ_CLS."""
    return ("classifier",) if task_of(fields) == "BertForSequenceClassification" else ()


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config, dtype = read_config(fields), settings.dtype
    if settings.sequence > config.positions:
        raise InputError(
            f"batch.sequence: {settings.sequence} tokens are more than the {config.positions} positions that bert has"
        )
    b = Builder("outer", settings.technique)
    ids = b.input_tensor("input_ids", (settings.batch, settings.sequence), "int64")
    if config.classes:
        outer = b.finish(
            sequence_classification(b, config, settings, ids, b.input_tensor("labels", (settings.batch,), "int64"))
        )
    else:
        outer = b.finish(masked_lm(b, config, settings, ids, ids))
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("encoder layer", settings.technique)
    arguments = layer_inputs(inner, call, NAMES)
    graph = inner.finish(layer(inner, config, settings, arguments["hidden_states"], arguments.get("attention_mask")))
    h = config.hidden
    before = [
        Parameter(f"embeddings.{name}", (1, config.positions), "int64", trainable=False, buffer=True)
        for name in ("position_ids", "token_type_ids")
    ]
    tables = (("word", config.vocabulary), ("position", config.positions), ("token_type", config.types))
    before += [
        Parameter(f"embeddings.{name}_embeddings.weight", (rows, h), dtype, module="embedding") for name, rows in tables
    ]
    before += norm_parameters("embeddings.LayerNorm", h, dtype)
    if config.classes:
        after = [
            *linear_parameters("pooler.dense", h, h, dtype),
            *linear_parameters("classifier", config.classes, h, dtype),
        ]
    else:
        after = [
            Parameter("cls.predictions.bias", (config.vocabulary,), dtype),
            *linear_parameters("cls.predictions.transform.dense", h, h, dtype),
        ]
        after += norm_parameters("cls.predictions.transform.LayerNorm", h, dtype)
    return Model(
        before=tuple(before),
        layers=(layer_parameters(config, dtype),),
        after=tuple(after),
        pattern=(0,) * config.layers,
        outer=outer,
        layer_graphs=(graph,),
        settings=settings,
        hold_inputs=HOLD,
        positional=2,
        head="" if config.classes else DECODER,
    )


release_in_slot_order(__name__)
