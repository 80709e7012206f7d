"""Linear layers and batched matrix products, with the workspaces of cuBLAS and cuBLASLt
(aten/src/ATen/cuda/CublasHandlePool.cpp).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memsim.graph.layer_graph import TensorSpec
from memsim.graph.layout import like, view_strides
from memsim.operators.base import Attrs, Inferred, Kind
from memsim.operators.elementwise import Edges, Grads, Specs

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine


class Linear(Kind):
    """F.linear(x, weight, bias): x [..., in], weight [out, in], bias [out] → [..., out].

    With a bias it is addmm, whose epilogue goes through cuBLASLt; without, mm. Backward makes the gradient of `mat2`
    (the weight) before that of `self` (x) for mm, and of `mat1` (x) before `mat2` (the weight) for addmm: the order of
    the names in derivatives.yaml.
    """

    unit = "matmul"
    flattens = True

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (*x.shape[:-1], weight.shape[0])
        return (Inferred(shape, like(shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, weight = inputs[:2]
        kept_x = (x.storage,) if weight.requires_grad else ()
        kept_weight = (weight.storage,) if x.requires_grad else ()
        return (*kept_x, *kept_weight) if len(inputs) == 3 else (*kept_weight, *kept_x)

    def prepare(self, m: Machine, grads: Grads) -> None:
        """The gradient of a result [..., out] as the product's own, [rows, out]: a copy takes its place where no view
        will do (UnsafeViewBackward).
        """
        (grad,) = grads
        flat = (math.prod(grad.shape[:-1]), grad.shape[-1])
        if len(grad.shape) > 2 and view_strides(grad.shape, grad.strides, flat) is None:
            copy = m.grad(grad.shape, like(grad.shape), grad.dtype, view=True)
            m.release(grad.storage)
            grad.storage, grad.strides, grad.view = copy.storage, copy.strides, True

    def one_by_one(self, inputs: Specs) -> bool:
        return len(inputs[0].shape) > 2

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        m.workspace(lt=len(inputs) == 3 and 1 not in inputs[1].shape)  # useLtInterface, in ATen/native/cuda/Blas.cpp

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight = inputs[:2]
        flatten(m, grads[0], outputs[0].shape)
        of_x = of_weight = None
        biased = len(inputs) == 3
        if biased and x.requires_grad:
            of_x = m.grad(x.shape, like(x.shape), x.dtype, view=len(x.shape) > 2)
            m.workspace()
        if weight.requires_grad:
            of_weight = m.grad(weight.shape, weight.strides, weight.dtype, view=True, parameter=True)
            m.workspace()
        if not biased and x.requires_grad:
            of_x = m.grad(x.shape, like(x.shape), x.dtype, view=len(x.shape) > 2)
            m.workspace()
        edges: Edges = []
        if biased and inputs[2].requires_grad:
            edges.append((2, m.same(grads[0])))
        if not biased and of_x:
            edges.append((0, of_x))
        if of_weight:
            edges.append((1, of_weight))
        if biased and of_x:
            edges.append((0, of_x))
        return edges

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[1]


def flatten(m: Machine, grad: Grad, shape: tuple[int, ...]) -> None:
    """The gradient as a matrix, which it was before a view gave it the other dimensions of the product: a copy takes
    its place where it must.
    """
    rows = (math.prod(shape[:-1]), shape[-1])
    if view_strides(grad.shape, grad.strides, rows) is not None:
        return
    copied = m.grad(shape, like(shape), grad.dtype)
    m.release(grad.storage)
    grad.storage, grad.strides, grad.view = copied.storage, copied.strides, False


class BatchedMatmul(Kind):
    """torch.bmm of [B, M, K] and [B, K, N]; a product over a single element asks for no workspace, but where workspaces
    are kept (seen in recordings, not read in the source).
    """

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        a, b = inputs
        shape = (*a.shape[:-1], b.shape[-1])
        return (Inferred(shape, like(shape), a.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        a, b = inputs
        return (*((b.storage,) if a.requires_grad else ()), *((a.storage,) if b.requires_grad else ()))

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        if inputs[0].shape[-1] != 1 or m.platform.software.keeps_cublas_workspaces:
            m.workspace()

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        a, b = inputs
        edges: Edges = []
        of_b = None
        if b.requires_grad:
            of_b = m.grad(b.shape, like(b.shape), b.dtype, view=True)
            if a.shape[-2] != 1 or m.platform.software.keeps_cublas_workspaces:
                m.workspace()
        if a.requires_grad:
            edges.append((0, m.grad(a.shape, like(a.shape), a.dtype, view=True)))
            if b.shape[-1] != 1 or m.platform.software.keeps_cublas_workspaces:
                m.workspace()
        if of_b:
            edges.append((1, of_b))
        return edges

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[0].shape[-1]


class Mm(Linear):
    """torch.matmul of [..., M, K] and [K, N]."""

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        a, b = inputs
        shape = (*a.shape[:-1], b.shape[1])
        return (Inferred(shape, like(shape), a.dtype),)

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[0].shape[-1]


class MultiplyAdd(Kind):
    """torch.addmm(bias, x, weight): x [rows, in], weight [in, out], bias [out] → [rows, out]."""

    unit = "matmul"

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        x, weight = inputs[:2]
        shape = (*x.shape[:-1], weight.shape[1])
        return (Inferred(shape, like(shape), x.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        x, weight = inputs[:2]
        return (*((x.storage,) if weight.requires_grad else ()), *((weight.storage,) if x.requires_grad else ()))

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        m.workspace(lt=True)

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        x, weight, bias = inputs
        edges: Edges = []
        if bias.requires_grad:
            edges.append((2, m.same(grads[0])))
        if x.requires_grad:
            edges.append((0, m.grad(x.shape, like(x.shape), x.dtype)))
            m.workspace()
        if weight.requires_grad:
            edges.append((1, m.grad(weight.shape, weight.strides, weight.dtype, parameter=True)))
            m.workspace()
        return edges

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[0]


class BatchedMultiplyAdd(Kind):
    """torch.baddbmm(c, a, b, alpha): c + alpha·a·b of [E, M, N], [E, M, K] and [E, K, N]; cuBLAS gets copies of
    operands without a unit stride.
    """

    unit = "matmul"
    factors = slice(1, 3)

    def infer(self, inputs: Specs, attrs: Attrs) -> tuple[Inferred, ...]:
        c, a, b = inputs
        shape = (*a.shape[:2], b.shape[2])
        return (Inferred(shape, like(shape), c.dtype),)

    def saved(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> tuple[int, ...]:
        _, a, b = inputs
        return (*((a.storage,) if b.requires_grad else ()), *((b.storage,) if a.requires_grad else ()))

    def forward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, into: list[int]) -> None:
        into.append(m.alloc(outputs[0].nbytes))
        self._product(m, True, *inputs[1:])

    def backward(self, m: Machine, inputs: Specs, outputs: Specs, attrs: Attrs, grads: Grads) -> Edges:
        _, a, b = inputs
        edges: Edges = [(0, m.same(grads[0]))] if inputs[0].requires_grad else []
        for i, other, summed in ((1, b, b.shape[2]), (2, a, a.shape[1])):
            if not inputs[i].requires_grad:
                continue
            grad = m.grad(inputs[i].shape, like(inputs[i].shape), inputs[i].dtype)
            self._product(m, summed != 1 or m.platform.software.keeps_cublas_workspaces, other)  # a bmm
            if attrs["alpha"] != 1:  # maybe_multiply
                scaled = m.like(grad)
                m.discard(grad)
                grad = scaled
            edges.append((i, grad))
        return edges

    def _product(self, m: Machine, workspace: bool, *operands: TensorSpec) -> None:
        copies = [m.alloc(x.nbytes) for x in operands if 1 not in x.strides[1:]]
        if workspace:
            m.workspace()
        m.release(*reversed(copies))

    def flops(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> float:
        return 2.0 * outputs[0].elements * inputs[1].shape[2]
