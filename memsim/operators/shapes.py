"""Operators that move or view: views, slices, concatenation, expansion, embedding."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from memsim.graph.dtypes import promote
from memsim.graph.layer_graph import TensorSpec
from memsim.graph.layout import contiguous, is_contiguous, like, view_strides
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine


class View(Kind):
    """x.view(shape): no memory; backward reshapes the gradient, which copies where its layout does not allow a view."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        shape: tuple[int, ...] = attrs["shape"]  # type: ignore[assignment]
        strides = view_strides(x.shape, x.strides, shape)
        if strides is None:
            raise AssertionError(f"a view of {x.shape}, {x.strides} as {shape} needs a copy")
        return (Inferred(shape, strides, x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.reshape(grads[0], inputs[0].shape))]


class NewLeaf(View):
    """nn.Parameter(x): the same memory, and a gradient of its own, whether x trains or not."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(x.shape, x.strides, x.dtype, alias=0, differentiable=False),)


class Reshape(Kind):
    """x.reshape(shape) that has to copy (a view otherwise: the builder's `reshape` decides)."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape: tuple[int, ...] = attrs["shape"]  # type: ignore[assignment]
        return (Inferred(shape, contiguous(shape), inputs[0].dtype),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.reshape(grads[0], inputs[0].shape))]


class Transpose(Kind):
    """x.transpose(a, b): no memory either way."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        return (Inferred(_swap(x.shape, attrs), _swap(x.strides, attrs), x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.view(grads[0], _swap(grads[0].shape, attrs), _swap(grads[0].strides, attrs)))]


def _swap(items: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    dims: tuple[int, int] = attrs["dims"]  # type: ignore[assignment]
    a, b = dims
    result = list(items)
    result[a], result[b] = result[b], result[a]
    return tuple(result)


class Expand(Kind):
    """x.expand(shape) of singleton dimensions: a view; the engine or a sum reduces the gradient."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        shape: tuple[int, ...] = attrs["shape"]  # type: ignore[assignment]
        strides = tuple(
            0 if have == 1 and want != 1 else step for have, want, step in zip(x.shape, shape, x.strides, strict=True)
        )
        return (Inferred(shape, strides, x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        grad = m.sum_to(m.same(grads[0]), inputs[0].shape)
        grad.alone = grads[0].alone
        return [(0, grad)]


class Slice(Kind):
    """x[..., start:stop:step]: a view; slice_backward makes zeros of x's shape and copies the gradient in."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        shape = list(x.shape)
        strides, dim = list(x.strides), int(attrs.get("dim", -1))  # type: ignore[call-overload]
        shape[dim] = int(attrs["length"])  # type: ignore[call-overload]
        strides[dim] *= int(attrs.get("step", 1))  # type: ignore[call-overload]
        return (Inferred(tuple(shape), tuple(strides), x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]


class Select(Kind):
    """x[:, 0], of the dimension `dim`: a view; select_backward makes zeros of x's shape and copies the gradient in."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        dim = int(attrs["dim"])  # type: ignore[call-overload]
        return (
            Inferred(
                (*x.shape[:dim], *x.shape[dim + 1 :]), (*x.strides[:dim], *x.strides[dim + 1 :]), x.dtype, alias=0
            ),
        )

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]


class Pad(Kind):
    """F.pad(x, (0, to - D)): a larger copy; backward cuts the gradient, and copies it (ATen/native/PadNd.cpp,
    constant_pad_nd).
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape = (*inputs[0].shape[:-1], int(attrs["to"]))  # type: ignore[call-overload]
        return (Inferred(shape, contiguous(shape), inputs[0].dtype),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, grad = inputs[0], grads[0]
        return [(0, m.grad(x.shape, like(x.shape, (x.shape, grad.strides)), grad.dtype))]


class Cat(Kind):
    """torch.cat along the last dimension, or `dim`, in the widest of the dtypes; the gradients are views of the
    incoming one.
    """

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        shape, dim = list(inputs[0].shape), int(attrs.get("dim", -1))  # type: ignore[call-overload]
        shape[dim] = sum(spec.shape[dim] for spec in inputs)
        return (Inferred(tuple(shape), contiguous(tuple(shape)), reduce(promote, (spec.dtype for spec in inputs))),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [
            (i, m.view(grads[0], spec.shape, grads[0].strides)) for i, spec in enumerate(inputs) if spec.requires_grad
        ]


class Stack(Kind):
    """torch.stack along a new last dimension; the gradients are views of the incoming one."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        shape = (*x.shape, len(inputs))
        return (Inferred(shape, contiguous(shape), x.dtype),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [
            (i, m.view(grads[0], spec.shape, grads[0].strides[:-1]))
            for i, spec in enumerate(inputs)
            if spec.requires_grad
        ]


class Chunk(Kind):
    """x.chunk(parts, dim=-1), or x.split(sizes, dim=-1): views; backward puts the gradients together."""

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        sizes: tuple[int, ...] | None = attrs.get("sizes")  # type: ignore[assignment]
        if sizes is None:
            parts = int(attrs["parts"])  # type: ignore[call-overload]
            sizes = (x.shape[-1] // parts,) * parts
        return tuple(Inferred((*x.shape[:-1], size), x.strides, x.dtype, alias=0) for size in sizes)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        return [(0, m.grad(inputs[0].shape, contiguous(inputs[0].shape), inputs[0].dtype))]


class Split(Chunk):
    """x.split(sizes, dim=-1): views, like chunk's."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        (x,) = inputs
        sizes: tuple[int, ...] = attrs["sizes"]  # type: ignore[assignment]
        return tuple(Inferred((*x.shape[:-1], size), x.strides, x.dtype, alias=0) for size in sizes)


class CopySlice(Kind):
    """x[..., start:stop].copy_(y) of y that expands to the slice: x, with a node of its own
    (torch/csrc/autograd/functions/tensor.cpp, CopySlices).

    Backward copies the whole gradient and, out of that, the slice: y's gradient. Where x had one to come, zeros go in
    the slice's place.
    """

    in_place = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x = inputs[0]
        return (Inferred(x.shape, x.strides, x.dtype, alias=0),)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, y = inputs
        shape = (*x.shape[:-1], y.shape[-1])
        result = m.grad(x.shape, x.strides, x.dtype)
        part = m.grad(shape, contiguous(shape), x.dtype)
        zeros = m.grad(shape, contiguous(shape), x.dtype) if x.requires_grad else None
        edges: Edges = []
        if zeros is not None:
            edges.append((0, result))
        if y.requires_grad:
            edges.append((1, m.cast(part, y.dtype)))
        else:
            m.discard(part)
        m.discard(result if zeros is None else zeros)
        return edges


class Embedding(Kind):
    """F.embedding(ids, weight): ids [B, S] int64, weight [V, H] → [B, S, H]; backward makes a dense gradient of the
    weight, by sorting the ids where there are many (ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu).
    """

    gathers = True

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        ids, weight = inputs
        shape = (*ids.shape, weight.shape[1])
        return (Inferred(shape, contiguous(shape), weight.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        return (inputs[0].storage,)

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        ids = inputs[0]
        # indices.reshape(-1)
        flat = None if view_strides(ids.shape, ids.strides, (ids.elements,)) else m.alloc(ids.nbytes)
        into.append(m.alloc(outputs[0].nbytes))
        if flat is not None:
            m.release(flat)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        ids, weight = inputs
        copied = [] if is_contiguous(ids.shape, ids.strides) else [m.alloc(ids.nbytes)]
        copied += [] if is_contiguous(grads[0].shape, grads[0].strides) else [m.alloc(outputs[0].nbytes)]
        edge = self._gradient(m, ids.elements, weight)
        m.release(*copied)
        return [(1, edge)]

    def _gradient(self, m: Machine, n: int, weight: TensorSpec) -> Grad:
        temporary = m.platform.embedding_sort(n, weight.shape[0], weight.shape[1], weight.dtype != "fp32")
        if temporary is None:
            return m.grad(weight.shape, contiguous(weight.shape), weight.dtype, parameter=True)
        sorted_ids, original, positions = m.alloc(8 * n), m.alloc(8 * n), m.alloc(8 * n)
        m.scratch(temporary.sort)
        m.release(positions)
        edge = m.grad(weight.shape, contiguous(weight.shape), weight.dtype, parameter=True)
        offsets, count, positions = m.alloc(8 * n), m.alloc(8), m.alloc(8 * n)
        m.scratch(temporary.unique)
        m.release(positions)
        per_segment, starts = m.alloc(temporary.segments), m.alloc(temporary.segments)
        m.scratch(temporary.scan)
        m.scratch(8, temporary.partial, *temporary.sums)
        m.release(starts, per_segment, count, offsets, original, sorted_ids)
        return edge


class Layers(Kind):
    """Layers one after the other, as one operator of the outer graph: hidden states in, hidden states out, and beside
    them what the first layer hands on to the others (`carries`: names, and specs of the tensors), or what else the last
    one returns (`extra`: shape and dtype). The schedule executes it.
    """

    flops_per_element = 0.0

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        hidden = inputs[0]
        carries: dict[str, TensorSpec] = attrs.get("carries", {})  # type: ignore[assignment]
        extra: tuple[tuple[int, ...], str] | None = attrs.get("extra")  # type: ignore[assignment]
        result = Inferred(hidden.shape, hidden.strides, str(attrs.get("dtype", hidden.dtype)))
        others = () if extra is None else (Inferred(extra[0], contiguous(extra[0]), extra[1], differentiable=False),)
        return (result, *(Inferred(spec.shape, spec.strides, spec.dtype) for spec in carries.values()), *others)
