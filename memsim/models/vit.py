"""ViT, trained to tell classes of images apart (transformers/models/vit/modeling_vit.py).

The tokens of an image follow from image_size and patch_size: batch.sequence says nothing. Its patches are embedded by a
convolution, which on a real GPU is cuDNN's, with a workspace that no recording here shows: that part is approximate
(operators/convolution.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memsim.errors import InputError
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import layer_inputs
from memsim.models.common.config import integer, probability
from memsim.models.common.encoder import act, activation_of, attend, classes_of, linear_parameters
from memsim.models.common.losses import cross_entropy
from memsim.models.common.norms import layer_norm, norm_parameters

NAMES = ("hidden_states",)
PROJECTION = "embeddings.patch_embeddings.projection"
APPROXIMATE = "the patches' convolution is PyTorch's own; cuDNN's workspace is not known"


@dataclass(frozen=True)
class Vit:
    """The fields that decide what executes; p are probabilities of dropout."""

    hidden: int
    inner: int
    layers: int
    heads: int
    activation: str
    hidden_p: float
    attention_p: float
    qkv_bias: bool
    image: tuple[int, int]
    patch: tuple[int, int]
    channels: int
    classes: int

    @property
    def tokens(self) -> int:
        """Of an image: its patches and the class token."""
        return (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1]) + 1


@module_call
def patch_embeddings(b: Builder, config: Vit, settings: Settings, pixel_values: Tensor) -> Tensor:
    """ViTPatchEmbeddings.forward: [B, C, Y, X] → [B, patches, H]."""
    weight = b.parameter(f"{PROJECTION}.weight", (config.hidden, config.channels, *config.patch), settings.dtype, True)
    bias = b.parameter(f"{PROJECTION}.bias", (config.hidden,), settings.dtype, True)
    projected = b.op("conv2d", pixel_values, weight, bias, label=PROJECTION)
    flat = b.op("view", projected, shape=(settings.batch, config.hidden, config.tokens - 1))
    del projected
    return b.op("transpose", flat, dims=(1, 2), input_embeddings=True)


@module_call
def embeddings(b: Builder, config: Vit, settings: Settings, pixel_values: Tensor) -> Tensor:
    """ViTEmbeddings.forward: [B, S, H]."""
    embeddings = patch_embeddings(b, config, settings, pixel_values)
    cls_token = b.parameter("embeddings.cls_token", (1, 1, config.hidden), settings.dtype, True)
    cls_tokens = b.op("expand", cls_token, shape=(settings.batch, 1, config.hidden))
    embeddings = b.op("cat", cls_tokens, embeddings, dim=1)
    positions = b.parameter("embeddings.position_embeddings", (1, config.tokens, config.hidden), settings.dtype, True)
    embeddings = b.op("add", embeddings, positions, label="embeddings.position_embeddings")
    embeddings = dropout(b, embeddings, config.hidden_p)
    return embeddings


@module_call
def attention(b: Builder, config: Vit, settings: Settings, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
    """ViTAttention.forward."""
    with b.module("attention"):
        batch, sequence, hidden = hidden_states.shape

        query_states = F.heads(
            b, hidden_states, "q_proj", config.heads, hidden // config.heads, settings.dtype, config.qkv_bias
        )
        key_states = F.heads(
            b, hidden_states, "k_proj", config.heads, hidden // config.heads, settings.dtype, config.qkv_bias
        )
        value_states = F.heads(
            b, hidden_states, "v_proj", config.heads, hidden // config.heads, settings.dtype, config.qkv_bias
        )
        attn_output, attn_weights = attend(
            b, settings, query_states, key_states, value_states, None, config.attention_p, in_fp32=True
        )
        attn_output = F.contiguous(b, F.reshape(b, attn_output, batch, sequence, hidden))
        attn_output = F.linear(b, attn_output, "o_proj", hidden, settings.dtype, True)
        return attn_output, attn_weights


@module_call
def mlp(b: Builder, config: Vit, settings: Settings, hidden_states: Tensor) -> Tensor:
    """ViTMLP.forward."""
    with b.module("mlp"):
        hidden_states = F.linear(b, hidden_states, "fc1", config.inner, settings.dtype, True)
        hidden_states = act(b, hidden_states, config.activation)
        hidden_states = F.linear(b, hidden_states, "fc2", config.hidden, settings.dtype, True)
        return hidden_states


@module_call
def layer(b: Builder, config: Vit, settings: Settings, hidden_states: Tensor) -> Tensor:
    """ViTLayer.forward."""
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "layernorm_before", settings.dtype)
    hidden_states, _ = attention(b, config, settings, hidden_states)
    hidden_states = dropout(b, hidden_states, config.hidden_p)
    hidden_states = b.op("add", hidden_states, residual, label="residual")
    residual = hidden_states
    hidden_states = layer_norm(b, hidden_states, "layernorm_after", settings.dtype)
    hidden_states = mlp(b, config, settings, hidden_states)
    hidden_states = dropout(b, hidden_states, config.hidden_p)
    hidden_states = b.op("add", hidden_states, residual, label="residual")
    return hidden_states


@module_call
def model(b: Builder, config: Vit, settings: Settings, pixel_values: Tensor) -> Tensor:
    """ViTModel.forward; returns last_hidden_state [B, S, H]."""
    pixel_values = F.to(
        b,
        pixel_values,
        b.parameter(
            f"{PROJECTION}.weight", (config.hidden, config.channels, *config.patch), settings.dtype, True
        ).dtype,
    )
    embedding_output = embeddings(b, config, settings, pixel_values)
    hidden_states = embedding_output
    hidden_states = b.op("layers", hidden_states, names=NAMES, trains=True)
    sequence_output = layer_norm(b, hidden_states, "layernorm", settings.dtype)
    del pixel_values  # an argument of forward dies before its other locals
    del embedding_output
    return sequence_output


@module_call
def image_classification(b: Builder, config: Vit, settings: Settings, pixel_values: Tensor, labels: Tensor) -> Tensor:
    """ViTForImageClassification.forward with labels; returns the loss."""
    sequence_output = model(b, config, settings, pixel_values)
    pooled_output = b.op("select", sequence_output, dim=1)
    logits = F.linear(b, pooled_output, "classifier", config.classes, settings.dtype, True)
    loss = cross_entropy(
        b, b.op("view", logits, shape=(settings.batch, config.classes)), b.op("view", labels, shape=(settings.batch,))
    )
    return loss


def layer_parameters(config: Vit, dtype: str) -> tuple[Parameter, ...]:
    """A layer's parameters in module order."""
    h, inner = config.hidden, config.inner
    rows = [
        p
        for name in ("q_proj", "k_proj", "v_proj")
        for p in linear_parameters(f"attention.{name}", h, h, dtype, config.qkv_bias)
    ]
    rows += [*linear_parameters("attention.o_proj", h, h, dtype), *norm_parameters("layernorm_before", h, dtype)]
    rows += norm_parameters("layernorm_after", h, dtype)
    return (*rows, *linear_parameters("mlp.fc1", inner, h, dtype), *linear_parameters("mlp.fc2", h, inner, dtype))


def edges(fields: Mapping[str, object], key: str, default: int) -> tuple[int, int]:
    """Height and width of a field that is one number for both, or two. Raises InputError."""
    value = fields.get(key, default)
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair):
        raise InputError(f"model.{key}: {value!r} is neither a positive whole number nor two")
    return pair[0], pair[1]


def read_config(fields: Mapping[str, object]) -> Vit:
    """The fields with ViTConfig's defaults. Raises InputError and Unsupported."""
    hidden, heads = integer(fields, "hidden_size", 768), integer(fields, "num_attention_heads", 12)
    if hidden % heads:
        raise InputError(f"model.num_attention_heads: {heads} heads do not divide hidden_size {hidden}")
    image, patch = edges(fields, "image_size", 224), edges(fields, "patch_size", 16)
    if image[0] < patch[0] or image[1] < patch[1]:
        raise InputError(
            f"model.patch_size: a patch of {patch[0]} × {patch[1]} is larger than an image of {image[0]} × {image[1]}"
        )
    return Vit(
        hidden=hidden,
        inner=integer(fields, "intermediate_size", 3072),
        layers=integer(fields, "num_hidden_layers", 12),
        heads=heads,
        activation=activation_of(fields, "hidden_act", "gelu"),
        hidden_p=probability(fields, "hidden_dropout_prob", 0.0),
        attention_p=probability(fields, "attention_probs_dropout_prob", 0.0),
        qkv_bias=bool(fields.get("qkv_bias", True)),
        image=image,
        patch=patch,
        channels=integer(fields, "num_channels", 3),
        classes=classes_of(fields),
    )


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields."""
    config, dtype = read_config(fields), settings.dtype
    if settings.padded:
        raise InputError("batch.padding: vit takes images, which are not padded; 0 is")
    settings = replace(settings, sequence=config.tokens)
    b = Builder("outer", settings.technique)
    pixels = b.input_tensor("pixel_values", (settings.batch, config.channels, *config.image), "fp32")
    outer = b.finish(
        image_classification(b, config, settings, pixels, b.input_tensor("labels", (settings.batch,), "int64"))
    )
    call = next(op for op in outer.operators if op.kind == "layers")
    inner = Builder("encoder layer", settings.technique)
    graph = inner.finish(layer(inner, config, settings, layer_inputs(inner, call, NAMES)["hidden_states"]))
    h = config.hidden
    before = [
        Parameter("embeddings.cls_token", (1, 1, h), dtype),
        Parameter("embeddings.position_embeddings", (1, config.tokens, h), dtype),
    ]
    before += [
        Parameter(f"{PROJECTION}.weight", (h, config.channels, *config.patch), dtype),
        Parameter(f"{PROJECTION}.bias", (h,), dtype),
    ]
    return Model(
        before=tuple(before),
        layers=(layer_parameters(config, dtype),),
        after=(*norm_parameters("layernorm", h, dtype), *linear_parameters("classifier", config.classes, h, dtype)),
        pattern=(0,) * config.layers,
        outer=outer,
        layer_graphs=(graph,),
        settings=settings,
        hold_inputs=NAMES,
        head="",
        approximate=APPROXIMATE,
    )


release_in_slot_order(__name__)
