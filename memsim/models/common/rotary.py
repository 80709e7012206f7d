"""Rotary position embeddings as transformers' files apply them: to whole heads or the first part of each, with halves
or neighbours turning together.
"""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor


def rotate_half(b: Builder, x: Tensor) -> Tensor:
    """Rotates half the hidden dims of the input."""
    half = x.shape[-1] // 2
    x1 = b.op("slice", x, length=half)
    x2 = b.op("slice", x, length=half)
    return b.op("cat", b.op("neg", x2), x1)


def rotate_neighbours(b: Builder, x: Tensor) -> Tensor:
    """Rotates the hidden dims of the input, in pairs of neighbours."""
    x1 = b.op("slice", x, length=x.shape[-1] // 2, step=2)
    x2 = b.op("slice", x, length=x.shape[-1] // 2, step=2)
    return b.op("view", b.op("stack", b.op("neg", x2), x1), shape=x.shape)


def apply_rotary_pos_emb(b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turns q [B, H, S, D] and k [B, K, S, D] by cos and sin [1, S, D]."""
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    q_embed = b.op("add", b.op("mul", q, cos), b.op("mul", rotate_half(b, q), sin))
    k_embed = b.op("add", b.op("mul", k, cos), b.op("mul", rotate_half(b, k), sin))
    return q_embed, k_embed


def apply_partial_rotary_pos_emb(
    b: Builder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, neighbours: bool = False
) -> tuple[Tensor, Tensor]:
    """Turns q [B, H, S, D] and k [B, K, S, D] by cos and sin [1, S, R]. The first R of a head's dimensions turn, by
    halves or, as GLM's, by neighbours.
    """
    cos = b.op("view", cos, shape=(cos.shape[0], 1, *cos.shape[1:]))
    sin = b.op("view", sin, shape=(sin.shape[0], 1, *sin.shape[1:]))
    if neighbours:
        cos = F.repeat_interleave(b, b.op("slice", cos, length=cos.shape[-1] // 2), 2, -1)
        sin = F.repeat_interleave(b, b.op("slice", sin, length=sin.shape[-1] // 2), 2, -1)
    rotate = rotate_neighbours if neighbours else rotate_half
    rotary = cos.shape[-1]
    q_rot, q_pass = part(b, q, rotary), b.op("slice", q, length=q.shape[-1] - rotary)
    k_rot, k_pass = part(b, k, rotary), b.op("slice", k, length=k.shape[-1] - rotary)
    q_embed = b.op("add", b.op("mul", q_rot, cos), b.op("mul", rotate(b, q_rot), sin))
    k_embed = b.op("add", b.op("mul", k_rot, cos), b.op("mul", rotate(b, k_rot), sin))
    q_embed = b.op("cat", q_embed, q_pass)
    k_embed = b.op("cat", k_embed, k_pass)
    return q_embed, k_embed


def part(b: Builder, x: Tensor, length: int) -> Tensor:
    """Runs x[..., :length]: an alias where that is all of x."""
    return b.op("view", x, shape=x.shape) if length == x.shape[-1] else b.op("slice", x, length=length)


release_in_slot_order(__name__)
