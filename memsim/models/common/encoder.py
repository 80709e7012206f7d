"""Code that encoders share: attention that looks both ways, its mask, activations of LayerNorm models, and heads of
classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.functional import dropout
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.activations import UNGATED, new_gelu
from memsim.models.common.attention import sdpa
from memsim.models.common.flash_attention import flash_attention_forward


@module_call
def act(b: Builder, x: Tensor, name: str) -> Tensor:
    """Runs ACT2FN[name](x), for a name that `activation_of` gave."""
    return new_gelu(b, x) if name == "gelu_new" else b.op(name, x)


def activation_of(fields: Mapping[str, object], key: str, default: str) -> str:
    """Returns the operator of an activation's name. Raises Unsupported."""
    name = str(fields.get(key) or default)
    if name not in UNGATED:
        raise Unsupported(f"model.{key}: {name} is not supported yet; {', '.join(UNGATED)} are")
    return UNGATED[name]


def classes_of(fields: Mapping[str, object]) -> int:
    """Returns num_labels of a config: the length of id2label, or the two that transformers gives a model that does not
    say. Raises Unsupported.
    """
    labels = fields.get("id2label")
    number = fields.get("num_labels") or (len(labels) if isinstance(labels, Mapping) else 2)
    if not isinstance(number, int) or isinstance(number, bool) or number < 2:
        raise Unsupported(
            f"model.num_labels: {number!r} is not supported yet, as it asks for another loss; 2 and more are"
        )
    problem = fields.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise Unsupported(f"model.problem_type: {problem} is not supported yet; single_label_classification is")
    return number


def attend(
    b: Builder,
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    p: float,
    in_fp32: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Runs attention_interface of an encoder: [B, H, S, D] → [B, S, H, D], and the weights where they exist. p:
    probability of dropout.
    """
    with b.core(query, key, value, mask):
        if settings.attention == "eager":
            return eager(b, query, key, value, mask, p, in_fp32)
        if settings.attention == "flash_attention_2":
            return flash_attention_forward(b, settings, query, key, value, mask, p, told_positions=False), None
        return sdpa(b, settings, query, key, value, mask, 1, p, causal=False), None


def eager(
    b: Builder, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Runs eager_attention_forward of BERT, and of ViT, whose softmax is in fp32."""
    attn_weights = b.op("mul_scalar", F.matmul(b, query, F.transpose(b, key, 2, 3)))
    if mask is not None:
        attn_weights = b.op("add", attn_weights, mask)
    attn_weights = (
        F.to(b, F.softmax(b, attn_weights, "fp32"), query.dtype) if in_fp32 else b.op("softmax", attn_weights)
    )
    attn_weights = dropout(b, attn_weights, p)
    attn_output = F.matmul(b, attn_weights, value)
    attn_output = F.contiguous(b, F.transpose(b, attn_output, 1, 2))
    return attn_output, attn_weights


def bidirectional_mask(b: Builder, settings: Settings, dtype: str, queries: int, keys: int) -> Tensor | None:
    """Runs masking_utils.create_bidirectional_mask. Returns None where nothing is padded, otherwise [B, 1, Q, K], bool,
    or of `dtype` for eager; [B, K] for FlashAttention.
    """
    if not settings.padded:
        return None
    with b.module("mask"), b.no_grad():
        return _padded(b, settings, dtype, queries, keys)


@module_call
def _padded(b: Builder, settings: Settings, dtype: str, queries: int, keys: int) -> Tensor:
    attention_mask = F.create(b, "attention_mask.bool", (settings.batch, keys), "bool")
    if settings.attention == "flash_attention_2":  # flash_attention_mask
        every = b.op("all", attention_mask)
        del every
        return attention_mask
    if settings.attention != "eager":
        mask = _boolean(b, settings, attention_mask, queries, keys)
        return mask
    mask = _boolean(b, settings, attention_mask, queries, keys)
    zero = F.create(b, "zeros", (), dtype)
    minimum = F.create(b, "minimum", (), dtype)
    mask, before = F.create(b, "where", (settings.batch, 1, queries, keys), dtype), mask
    del minimum
    del zero
    del before
    return mask


def _boolean(b: Builder, settings: Settings, attention_mask: Tensor, queries: int, keys: int) -> Tensor:
    """Runs masking_utils.sdpa_mask, once `padding_mask.all()` is false."""
    b.op("all", attention_mask)
    batch = settings.batch
    batch_arange = F.create(b, "batch_arange", (batch,), "int64")
    head_arange = F.create(b, "head_arange", (1,), "int64")
    q_arange = F.create(b, "q_arange", (queries,), "int64")
    q_arange = F.create(b, "q_arange", (queries,), "int64")
    kv_arange = F.create(b, "kv_arange", (keys,), "int64")
    kv_arange = F.create(b, "kv_arange", (keys,), "int64")
    result = F.create(b, "new_ones", (), "bool")
    every = F.create(b, "every", (1, 1, queries, 1), "bool")
    result, before = F.create(b, "and", (1, 1, queries, 1), "bool"), result
    del every
    del before
    batch_index = F.create(b, "batch_index", (batch, 1, 1, keys), "int64") if keys > 1 else None
    key_index = F.create(b, "key_index", (batch, 1, 1, keys), "int64") if batch > 1 else None
    inside = F.create(b, "padding", (batch, 1, 1, keys), "bool")
    del key_index
    del batch_index
    result, before = F.create(b, "and", (batch, 1, queries, keys), "bool"), result
    del inside
    del before
    del batch_arange
    del head_arange
    del q_arange
    del kv_arange
    return result


def linear_parameters(name: str, out: int, inputs: int, dtype: str, bias: bool = True) -> list[Parameter]:
    """Returns the parameters of an nn.Linear."""
    rows = [Parameter(f"{name}.weight", (out, inputs), dtype, module="linear")]
    return [*rows, Parameter(f"{name}.bias", (out,), dtype, module="linear")] if bias else rows


release_in_slot_order(__name__)
