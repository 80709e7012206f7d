"""A layer of T5 (transformers/models/t5/modeling_t5.py): relative positions that the first layer of a stack turns into
a bias for all, cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.attention import sdpa
from memsim.models.common.encoder import act, linear_parameters

BIAS, CROSS_BIAS = "position_bias", "encoder_decoder_position_bias"
ENCODED, ENCODED_MASK = "encoder_hidden_states", "encoder_attention_mask"


@dataclass(frozen=True)
class T5:
    """The fields that decide what executes; p is the probability of dropout."""

    hidden: int
    inner: int
    head: int
    heads: int
    layers: int
    decoder_layers: int
    vocabulary: int
    buckets: int
    activation: str
    gated: bool
    p: float
    scaled: bool  # the decoder's result, ahead of the head
    wo_dtype: str


@module_call
def layer_norm(b: Builder, hidden_states: Tensor, name: str, dtype: str) -> Tensor:
    """T5LayerNorm.forward."""
    weight = b.parameter(f"{name}.weight", (hidden_states.shape[-1],), dtype, True)
    with b.module(name.rpartition(".")[2]):
        variance = b.op("mean", b.op("square", F.to(b, hidden_states, "fp32")))
        hidden_states = b.op("mul", hidden_states, b.op("rsqrt", b.op("add_scalar", variance)))
        if weight.dtype != "fp32":
            hidden_states = F.to(b, hidden_states, weight.dtype)
        return b.op("mul", weight, hidden_states)


@module_call
def relative_position_bucket(b: Builder, relative_position: Tensor, bidirectional: bool) -> Tensor:
    """T5Attention._relative_position_bucket: int64 of the same shape [Q, K]."""
    shape = relative_position.shape

    def made(label: str, dtype: str = "int64") -> Tensor:
        return F.create(b, label, shape, dtype)

    if bidirectional:
        positive = made("positive", "bool")
        long = made("positive.long")
        del positive
        scaled = made("buckets.mul")
        del long
        relative_buckets = made("relative_buckets")
        del scaled
        relative_position = made("abs")
    else:
        zeros = made("zeros_like")
        least = made("min")
        del zeros
        relative_position = made("neg")
        del least
    is_small = made("is_small", "bool")
    ratio = made("float", "fp32")
    for label in ("div", "log", "div", "mul"):
        ratio = made(label, "fp32")
    large = made("long")
    del ratio
    relative_position_if_large = made("add")
    del large
    full = made("full_like")
    relative_position_if_large, before = made("min"), relative_position_if_large
    del full
    del before
    chosen = made("where")
    if not bidirectional:
        relative_buckets = made("relative_buckets")
    del chosen
    del relative_position  # an argument
    del is_small
    del relative_position_if_large
    return relative_buckets


@module_call
def compute_bias(
    b: Builder, config: T5, settings: Settings, query_length: int, key_length: int, bidirectional: bool
) -> Tensor:
    """T5Attention.compute_bias: [1, heads, Q, K], laid out as the embedding gave it."""
    with b.no_grad():
        positions = F.create(b, "arange", (query_length,), "int64")
        context_position = F.create(b, "context_position", (query_length, 1), "int64")
        del positions
        memory_position = F.create(b, "memory_position", (1, key_length), "int64")
        relative_position = F.create(b, "relative_position", (query_length, key_length), "int64")
        bucket = relative_position_bucket(b, relative_position, bidirectional)
    name = ".".join([*b.path, "relative_attention_bias.weight"])
    weight = b.parameter(name, (config.buckets, config.heads), settings.dtype, True)
    values = b.op("embedding", bucket, weight, label="relative_attention_bias")
    values = b.op(
        "view", F.transpose(b, F.transpose(b, values, 0, 2), 1, 2), shape=(1, config.heads, query_length, key_length)
    )
    del context_position
    del memory_position
    del relative_position
    del bucket
    return values


def position_mask(
    b: Builder, position_bias: Tensor, mask: Tensor | None, causal: bool, queries: int, keys: int
) -> Tensor:
    """sdpa_attention.create_position_bias_mask."""
    causal_mask = None
    if mask is None and causal:
        with b.no_grad():
            q_range = F.create(b, "arange", (queries,), "int64")
            kv_range = F.create(b, "arange", (keys,), "int64")
            causal_mask = F.create(b, "causal_mask", (1, 1, queries, keys), "bool")
            del q_range
            del kv_range
        position_bias_mask = b.op("where", causal_mask, position_bias)
    elif mask is None:
        position_bias_mask = position_bias
    else:
        position_bias_mask = b.op("where", mask, position_bias)
    result = F.contiguous(b, position_bias_mask)
    del causal_mask
    del position_bias_mask
    return result


def eager(
    b: Builder, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """eager_attention_forward of T5."""
    attn_weights = b.op("mul_scalar", F.matmul(b, query, F.transpose(b, key, 2, 3)))
    attn_weights = b.op("add", attn_weights, bias)
    if mask is not None:
        attn_weights = b.op("add", attn_weights, mask)
    attn_weights = b.op("softmax", attn_weights)
    attn_weights = dropout(b, attn_weights, p)
    attn_output = F.matmul(b, attn_weights, value)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output, attn_weights


@module_call
def sdpa_with_bias(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor,
    p: float,
    causal: bool,
) -> Tensor:
    """sdpa_attention_forward with a position bias."""
    queries, keys = query.shape[2], key.shape[2]
    mask = position_mask(b, bias, mask, causal and queries > 1, queries, keys)
    attn_output = sdpa(b, settings, query, key, value, mask, 1, p, causal=False)
    return attn_output


@module_call
def attention(
    b: Builder,
    config: T5,
    settings: Settings,
    hidden_states: Tensor,
    mask: Tensor | None,
    key_value_states: Tensor | None,
    position_bias: Tensor | None,
    decodes: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """T5Attention.forward: its result, the position bias, and the weights where they exist."""
    crosses = key_value_states is not None
    inner, dtype = config.heads * config.head, settings.dtype

    with b.module("EncDecAttention" if crosses else "SelfAttention"):
        query_states = F.heads(b, hidden_states, "q", config.heads, config.head, dtype)
        current_states = key_value_states if key_value_states is not None else hidden_states
        key_states = F.heads(b, current_states, "k", config.heads, config.head, dtype)
        value_states = F.heads(b, current_states, "v", config.heads, config.head, dtype)
        queries, keys = query_states.shape[2], key_states.shape[2]
        if position_bias is None and crosses:
            shape = (1, config.heads, queries, keys)
            position_bias = b.op(
                "create", shape=shape, dtype=query_states.dtype, label="position_bias", input_embeddings=True
            )
        elif position_bias is None:
            position_bias = compute_bias(b, config, settings, queries, keys, not decodes)
        attn_weights = None
        if settings.attention == "eager":
            attn_output, attn_weights = eager(b, query_states, key_states, value_states, mask, position_bias, config.p)
        else:
            attn_output = sdpa_with_bias(
                b,
                settings,
                query_states,
                key_states,
                value_states,
                mask,
                position_bias,
                config.p,
                decodes and not crosses,
            )
        attn_output = F.contiguous(b, F.reshape(b, attn_output, *hidden_states.shape[:2], inner))
        attn_output = F.linear(b, attn_output, "o", config.hidden, dtype)
        return attn_output, position_bias, attn_weights


@module_call
def attention_layer(
    b: Builder,
    config: T5,
    settings: Settings,
    hidden_states: Tensor,
    mask: Tensor | None,
    key_value_states: Tensor | None,
    position_bias: Tensor | None,
    decodes: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """T5LayerSelfAttention.forward, T5LayerCrossAttention.forward."""
    with b.module(f"layer.{0 if key_value_states is None else 1}"):
        normed_hidden_states = layer_norm(b, hidden_states, ".".join([*b.path, "layer_norm"]), settings.dtype)
        attention_output, position_bias, attn_weights = attention(
            b, config, settings, normed_hidden_states, mask, key_value_states, position_bias, decodes
        )
        layer_output = b.op("add", hidden_states, dropout(b, attention_output, config.p), label="residual")
        if key_value_states is None:  # there the sum takes the name of what attention gave
            del attention_output
        return layer_output, position_bias, attn_weights


@module_call
def dense(b: Builder, config: T5, settings: Settings, hidden_states: Tensor) -> Tensor:
    """T5DenseActDense.forward, T5DenseGatedActDense.forward."""
    with b.module("DenseReluDense"):
        if config.gated:
            hidden_gelu = act(b, F.linear(b, hidden_states, "wi_0", config.inner, settings.dtype), config.activation)
            hidden_linear = F.linear(b, hidden_states, "wi_1", config.inner, settings.dtype)
            hidden_states = b.op("mul", hidden_gelu, hidden_linear)
        else:
            hidden_states = F.linear(b, hidden_states, "wi", config.inner, settings.dtype)
            hidden_states = act(b, hidden_states, config.activation)
        hidden_states = dropout(b, hidden_states, config.p)
        hidden_states = F.to(b, hidden_states, config.wo_dtype)
        hidden_states = F.linear(b, hidden_states, "wo", config.hidden, config.wo_dtype)
        return hidden_states


@module_call
def feed_forward(b: Builder, config: T5, settings: Settings, hidden_states: Tensor, decodes: bool) -> Tensor:
    """T5LayerFF.forward."""
    with b.module(f"layer.{2 if decodes else 1}"):
        forwarded_states = layer_norm(b, hidden_states, ".".join([*b.path, "layer_norm"]), settings.dtype)
        forwarded_states = dense(b, config, settings, forwarded_states)
        hidden_states = b.op("add", hidden_states, dropout(b, forwarded_states, config.p), label="residual")
        return hidden_states


def bound(b: Builder, hidden_states: Tensor) -> Tensor:
    """What hidden states in fp16 are kept within: the largest number, or less where one is infinite."""
    with b.module("clamp"), b.no_grad():
        infinite = b.op("any_infinite", hidden_states)
        less, most = F.create(b, "number", (), "fp32"), F.create(b, "number", (), "fp32")
        clamp_value = F.create(b, "clamp_value", (), "fp32")
        del most
        del less
        del infinite
        return clamp_value


def clamp(b: Builder, hidden_states: Tensor, clamp_value: Tensor) -> Tensor:
    """torch.clamp(hidden_states, min=-clamp_value, max=clamp_value)."""
    with b.no_grad():
        low = F.create(b, "clamp.neg", (), "fp32")
    return b.op("clamp_by_tensors", hidden_states, low, clamp_value, label="clamp")


@module_call
def block(
    b: Builder, config: T5, settings: Settings, decodes: bool, given: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """T5Block.forward: hidden states, and the position biases of both attentions."""
    hidden_states = given["hidden_states"]
    hidden_states, self_attn_position_bias, _ = attention_layer(
        b, config, settings, hidden_states, given.get("attention_mask"), None, given.get(BIAS), decodes
    )
    if hidden_states.dtype == "fp16":
        clamp_value = bound(b, hidden_states)
        hidden_states = clamp(b, hidden_states, clamp_value)
    cross_attn_position_bias = None
    if decodes:
        hidden_states, cross_attn_position_bias, _ = attention_layer(
            b, config, settings, hidden_states, given.get(ENCODED_MASK), given[ENCODED], given.get(CROSS_BIAS), decodes
        )
        if hidden_states.dtype == "fp16":
            clamp_value = bound(b, hidden_states)
            hidden_states = clamp(b, hidden_states, clamp_value)
    with b.callers(
        *(tensor for tensor in (self_attn_position_bias, _, cross_attn_position_bias) if tensor is not None)
    ):
        hidden_states = feed_forward(b, config, settings, hidden_states, decodes)
    if hidden_states.dtype == "fp16":
        clamp_value = bound(b, hidden_states)
        hidden_states = clamp(b, hidden_states, clamp_value)
    return hidden_states, self_attn_position_bias, cross_attn_position_bias


def layer_parameters(config: T5, settings: Settings, decodes: bool, first: bool) -> tuple[Parameter, ...]:
    """A layer's parameters in module order."""
    dtype, h, inner = settings.dtype, config.hidden, config.heads * config.head

    def attention_rows(at: int, name: str) -> list[Parameter]:
        rows = [
            p
            for one in ("q", "k", "v")
            for p in linear_parameters(f"layer.{at}.{name}.{one}", inner, h, dtype, bias=False)
        ]
        rows += linear_parameters(f"layer.{at}.{name}.o", h, inner, dtype, bias=False)
        if first and at == 0:
            rows.append(
                Parameter(
                    f"layer.0.{name}.relative_attention_bias.weight",
                    (config.buckets, config.heads),
                    dtype,
                    module="embedding",
                )
            )
        return [*rows, Parameter(f"layer.{at}.layer_norm.weight", (h,), dtype, module="norm")]

    rows = attention_rows(0, "SelfAttention") + (attention_rows(1, "EncDecAttention") if decodes else [])
    last = f"layer.{2 if decodes else 1}"
    for name in ("wi_0", "wi_1") if config.gated else ("wi",):
        rows += linear_parameters(f"{last}.DenseReluDense.{name}", config.inner, h, dtype, bias=False)
    # from_pretrained leaves it in fp32
    made = "fp32" if settings.created == "fp16" and config.wo_dtype == dtype else ""
    rows.append(
        Parameter(
            f"{last}.DenseReluDense.wo.weight", (h, config.inner), config.wo_dtype, module="linear", created_dtype=made
        )
    )
    return (*rows, Parameter(f"{last}.layer_norm.weight", (h,), dtype, module="norm"))


release_in_slot_order(__name__)
