"""Multi-head latent attention of DeepSeek-V2 and V3 (transformers/models/{deepseek_v2,deepseek_v3}/modeling_*.py,
DeepseekV3Attention).

Keys and values come out of one small latent for each token. Keys end in a part that turns and that all heads share.
Keys are wider than values, so few of torch's kernels take them.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.attention import attend
from memsim.models.common.config import DecoderConfig, integer
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import linear_parameters
from memsim.models.common.rotary import apply_rotary_pos_emb


@dataclass(frozen=True)
class Latent:
    """Sizes, in elements: of the latents, and of the parts of a head."""

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    v: int

    @property
    def qk(self) -> int:
        """Size of a query and a key, in elements."""
        return self.nope + self.rope


def latent_of(config: DecoderConfig) -> Latent:
    """Returns the sizes that the config's fields give. Raises InputError."""
    fields = config.fields
    return Latent(
        q_rank=integer(fields, "q_lora_rank") if fields.get("q_lora_rank") is not None else None,
        kv_rank=integer(fields, "kv_lora_rank"),
        nope=integer(fields, "qk_nope_head_dim"),
        rope=integer(fields, "qk_rope_head_dim"),
        v=integer(fields, "v_head_dim"),
    )


def queries(b: Builder, config: DecoderConfig, settings: Settings, hidden_states: Tensor) -> Tensor:
    """Runs the projections of the queries: [B, S, H·D]."""
    sizes, dtype = latent_of(config), settings.dtype
    width = config.num_attention_heads * sizes.qk
    if sizes.q_rank is None:
        return F.linear(b, hidden_states, "q_proj", width, dtype)
    return F.linear(
        b,
        rms_norm(
            b,
            F.linear(b, hidden_states, "q_a_proj", sizes.q_rank, dtype, config.attention_bias),
            "q_a_layernorm",
            dtype,
        ),
        "q_b_proj",
        width,
        dtype,
    )


def expand_kv(
    b: Builder, config: DecoderConfig, settings: Settings, kv_nope: Tensor, k_rot: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs DeepseekV3Attention.expand_kv: the latent [B, 1, S, rank] and the shared part of the keys [B, 1, S, R] →
    keys and values, [B, H, S, D].
    """
    sizes, heads = latent_of(config), config.num_attention_heads
    batch_size, _, seq_length, _ = kv_nope.shape
    kv_nope = F.transpose(
        b,
        b.op(
            "view",
            F.linear(b, kv_nope, "kv_b_proj", heads * (sizes.nope + sizes.v), settings.dtype),
            shape=(batch_size, seq_length, heads, sizes.nope + sizes.v),
        ),
        1,
        2,
    )
    k_nope, value_states = b.run("split", kv_nope, sizes=(sizes.nope, sizes.v))
    k_rot = b.op("expand", k_rot, shape=(batch_size, heads, seq_length, sizes.rope))
    key_states = F.create(b, "new_empty", (batch_size, heads, seq_length, sizes.qk), kv_nope.dtype)
    key_states = b.op("copy_slice_", key_states, k_nope)
    key_states = b.op("copy_slice_", key_states, k_rot)
    return key_states, value_states


def apply_rotary_pos_emb_interleave(
    b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Turns neighbouring pairs: q [B, H, S, R], k [B, 1, S, R], cos and sin [1, S, R]."""
    half = cos.shape[-1] // 2
    cos = b.op("view", b.op("slice", cos, length=half), shape=(cos.shape[0], 1, *cos.shape[1:-1], half))
    sin = b.op("view", b.op("slice", sin, length=half), shape=(sin.shape[0], 1, *sin.shape[1:-1], half))
    q1 = b.op("slice", q, length=half, step=2)
    q2 = b.op("slice", q, length=half, step=2)
    k1 = b.op("slice", k, length=half, step=2)
    k2 = b.op("slice", k, length=half, step=2)
    q_embed = turned(b, q1, q2, cos, sin)
    k_embed = turned(b, k1, k2, cos, sin)
    return q_embed, k_embed


def turned(b: Builder, x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Runs torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1). The list goes from its end."""
    first = b.op("sub", b.op("mul", x1, cos), b.op("mul", x2, sin))
    second = b.op("add", b.op("mul", x2, cos), b.op("mul", x1, sin))
    both = b.op("cat", first, second)
    del second
    del first
    return both


def apply_rotary_emb(b: Builder, xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Does the same turn as a product of complex numbers: xq [B, H, S, R], xk [B, 1, S, R], freqs_cis [1, S, R / 2]."""

    def as_complex(x: Tensor) -> Tensor:
        return b.op("view_as_complex", F.reshape(b, F.to(b, x, "fp32"), *x.shape[:-1], x.shape[-1] // 2, 2))

    def turn(x: Tensor, numbers: Tensor) -> Tensor:
        return F.to(b, F.reshape(b, b.op("view_as_real", b.op("complex_mul", numbers, freqs_cis)), *x.shape), x.dtype)

    xq_ = as_complex(xq)
    xk_ = as_complex(xk)
    freqs_cis = b.op("view", freqs_cis, shape=(freqs_cis.shape[0], 1, *freqs_cis.shape[1:]))
    xq_out = turn(xq, xq_)
    xk_out = turn(xk, xk_)
    return xq_out, xk_out


@module_call
def self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Runs DeepseekV3Attention.forward. The weights that it returns live in the layer's `_`."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        sizes, heads = latent_of(config), config.num_attention_heads
        q_states = queries(b, config, settings, hidden_states)
        q_states = F.transpose(b, b.op("view", q_states, shape=(batch, sequence, heads, sizes.qk)), 1, 2)
        q_pass, q_rot = b.run("split", q_states, sizes=(sizes.nope, sizes.rope))
        compressed_kv = F.linear(
            b, hidden_states, "kv_a_proj_with_mqa", sizes.kv_rank + sizes.rope, settings.dtype, config.attention_bias
        )
        kv_nope, k_rot = b.run("split", compressed_kv, sizes=(sizes.kv_rank, sizes.rope))
        kv_nope = rms_norm(b, kv_nope, "kv_a_layernorm", settings.dtype)
        kv_nope = b.op("view", kv_nope, shape=(batch, 1, sequence, sizes.kv_rank))
        k_rot = b.op("view", k_rot, shape=(batch, 1, sequence, sizes.rope))
        turn = apply_rotary_pos_emb_interleave if config.fields.get("rope_interleave") else apply_rotary_pos_emb
        q_rot, k_rot = turn(b, q_rot, k_rot, cos, sin)
        query_states = b.op("cat", q_pass, q_rot)
        key_states, value_states = expand_kv(b, config, settings, kv_nope, k_rot)
        return attend(
            b, config, settings, query_states, key_states, value_states, mask, config.attention_bias, offset=sizes.nope
        )


@module_call
def complex_self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    freqs_cis: Tensor,
    _: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Runs DeepseekV2Attention.forward: the same, turned by complex numbers."""
    with b.module("self_attn"):
        batch, sequence = hidden_states.shape[:2]
        sizes, heads = latent_of(config), config.num_attention_heads
        q = queries(b, config, settings, hidden_states)
        q = F.transpose(b, b.op("view", q, shape=(batch, sequence, heads, sizes.qk)), 1, 2)
        q_nope, q_pe = b.run("split", q, sizes=(sizes.nope, sizes.rope))
        compressed_kv = F.linear(
            b, hidden_states, "kv_a_proj_with_mqa", sizes.kv_rank + sizes.rope, settings.dtype, config.attention_bias
        )
        kv_nope, k_pe = b.run("split", compressed_kv, sizes=(sizes.kv_rank, sizes.rope))
        k_nope = b.op(
            "view", rms_norm(b, kv_nope, "kv_a_layernorm", settings.dtype), shape=(batch, 1, sequence, sizes.kv_rank)
        )
        k_pe = b.op("view", k_pe, shape=(batch, 1, sequence, sizes.rope))
        q_pe, k_pe = apply_rotary_emb(b, q_pe, k_pe, freqs_cis)
        query_states = b.op("cat", q_nope, q_pe)
        key_states, value_states = expand_kv(b, config, settings, k_nope, k_pe)
        return attend(
            b, config, settings, query_states, key_states, value_states, mask, config.attention_bias, offset=sizes.nope
        )


def attention_parameters(config: DecoderConfig, dtype: str) -> list[Parameter]:
    """Returns the parameters of DeepseekV3Attention, in module order."""
    sizes, heads, hidden = latent_of(config), config.num_attention_heads, config.hidden_size
    bias = config.attention_bias

    def norm(name: str, size: int) -> Parameter:
        return Parameter(f"self_attn.{name}.weight", (size,), dtype, module="norm")

    if sizes.q_rank is None:
        rows = linear_parameters("self_attn.q_proj", heads * sizes.qk, hidden, dtype)
    else:
        rows = linear_parameters("self_attn.q_a_proj", sizes.q_rank, hidden, dtype, bias)
        rows += [norm("q_a_layernorm", sizes.q_rank)]
        rows += linear_parameters("self_attn.q_b_proj", heads * sizes.qk, sizes.q_rank, dtype)
    rows += linear_parameters("self_attn.kv_a_proj_with_mqa", sizes.kv_rank + sizes.rope, hidden, dtype, bias)
    rows += [norm("kv_a_layernorm", sizes.kv_rank)]
    rows += linear_parameters("self_attn.kv_b_proj", heads * (sizes.nope + sizes.v), sizes.kv_rank, dtype)
    return rows + linear_parameters("self_attn.o_proj", hidden, heads * sizes.v, dtype, bias)


release_in_slot_order(__name__)
