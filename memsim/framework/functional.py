"""Operators by the names that PyTorch code uses, so that a model's file reads like its forward."""

from __future__ import annotations

from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.graph.layout import view_strides


def to(b: Builder, x: Tensor, dtype: str) -> Tensor:
    """Runs x.to(dtype): x itself where it has that dtype."""
    return x if x.dtype == dtype else b.op("cast", x, dtype=dtype)


def reshape(b: Builder, x: Tensor, *shape: int) -> Tensor:
    """Runs x.reshape(shape): a view where the layout allows one."""
    if x.shape == shape:
        return x
    kind = "view" if view_strides(x.spec.shape, x.spec.strides, shape) is not None else "reshape"
    return b.op(kind, x, shape=shape)


def transpose(b: Builder, x: Tensor, i: int, j: int) -> Tensor:
    """Runs x.transpose(i, j)."""
    return b.op("transpose", x, dims=(i, j))


def index(b: Builder, settings: Settings, x: Tensor, *dims: int) -> Tensor:
    """Runs x[:, …] where these dimensions are indexed with `:`. Some stacks take `:` for a slice,
    others for nothing.
    """
    if settings.stack.index_slices_whole_dimensions:
        for dim in dims:
            x = b.op("slice", x, dim=dim, length=x.shape[dim])
    return x


def contiguous(b: Builder, x: Tensor) -> Tensor:
    """Runs x.contiguous(): x itself where it already is."""
    step = 1
    for size, stride in zip(reversed(x.spec.shape), reversed(x.spec.strides), strict=True):
        if size != 1 and stride != step:
            return b.op("clone", x, contiguous=True)
        step *= size
    return x


def linear(
    b: Builder, x: Tensor, name: str, out_features: int, dtype: str, bias: bool = False, of_view: bool = False
) -> Tensor:
    """Runs self.NAME(x), an nn.Linear. of_view: one that multiplies by weight.T, a view of its own."""
    with b.module(name):
        path = ".".join(b.path)
        weights = [b.parameter(f"{path}.weight", (out_features, x.shape[-1]), dtype, True)]
        if bias:
            weights.append(b.parameter(f"{path}.bias", (out_features,), dtype, True))
        return (
            b.op("linear", x, *weights, module=path, of_view=True)
            if of_view
            else b.op("linear", x, *weights, module=path)
        )


def create(b: Builder, label: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Makes a new tensor, as arange, full, ones … do."""
    return b.op("create", shape=shape, dtype=dtype, label=label)


def softmax(b: Builder, x: Tensor, dtype: str) -> Tensor:
    """Runs F.softmax(x, -1, dtype=dtype). It converts x first; from fp16 to fp32 one kernel does both."""
    if x.dtype == "fp16" and dtype == "fp32":
        return b.op("softmax", x, dtype=dtype)
    return b.op("softmax", to(b, x, dtype))


def matmul(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    """Runs torch.matmul of [B, H, M, K] and [B, H, K, N]: a bmm over B·H. Operands whose layouts do not fold are
    copied.
    """
    batch, heads, m, k = x.shape
    n = y.shape[-1]
    x, y = b.lower(x, y)
    x_folded = reshape(b, x, batch * heads, m, k)
    y_folded = reshape(b, y, batch * heads, k, n)
    result = b.op("view", b.op("matmul", x_folded, y_folded), shape=(batch, heads, m, n))
    del y_folded
    del x_folded
    return result


def repeat_interleave(b: Builder, x: Tensor, times: int, dim: int) -> Tensor:
    """Runs x.repeat_interleave(times, dim): a contiguous copy."""
    axis = dim % len(x.shape)
    lead, size, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    x = b.op("expand", b.op("view", x, shape=(*lead, size, 1, *rest)), shape=(*lead, size, times, *rest))
    return b.op("view", b.op("clone", x, contiguous=True), shape=(*lead, size * times, *rest))


def positions(b: Builder, settings: Settings) -> Tensor:
    """Runs torch.arange(S) + past_seen_tokens, unsqueezed: position_ids [1, S]. Stacks with a cache_position add
    nothing.
    """
    position_ids = create(b, "arange", (settings.sequence,), "int64")
    if not settings.stack.takes_cache_position:
        position_ids = create(b, "positions", (settings.sequence,), "int64")
    return b.op("view", position_ids, shape=(1, settings.sequence))


def layers(b: Builder, given: dict[str, Tensor]) -> Tensor:
    """Runs the loop over layers, called with these tensors by name. Empties `given`, so that nothing
    here keeps them.
    """
    names, tensors = tuple(given), tuple(given.values())
    given.clear()
    return b.op("layers", *tensors, names=names, trains=True)


def heads(b: Builder, x: Tensor, name: str, count: int, head_dim: int, dtype: str, bias: bool = False) -> Tensor:
    """Projects x [B, S, W] and splits it into heads: [B, count, S, head_dim]."""
    states = linear(b, x, name, count * head_dim, dtype, bias)
    return transpose(b, b.op("view", states, shape=(*x.shape[:2], count, head_dim)), 1, 2)


def dropout(b: Builder, x: Tensor, p: float) -> Tensor:
    """Runs nn.Dropout(p)(x)."""
    return b.op("dropout", x, p=p) if p else x


release_in_slot_order(__name__)
