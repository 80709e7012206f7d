"""What every operator says of itself: its results, what it keeps for backward, and the requests it makes, forward and
backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import TensorSpec

if TYPE_CHECKING:
    from memsim.machine.storages import Grad, Machine

Attrs = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Inferred:
    """A result before it has a number: `alias` is the input whose storage it views."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    alias: int | None = None
    differentiable: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """What one execution asks of the device (cost.py turns it into seconds)."""

    # what does the arithmetic: "vector", "matmul" (tensor cores, where the dtype has them) or "attention" (the same, in
    # a fused kernel)
    unit: str
    dtype: str  # in which it is done
    flops: float
    bytes: float  # read from and written to the device's memory


class Kind:
    """One row of the operator table. Subclasses are stateless; the default is an operator that only allocates its
    results.
    """

    differentiable = True
    flops_per_element = 1.0
    unit = "vector"  # as in Work
    gathers = False  # whether it reads of its operands only as much as it writes
    in_place = False  # whether it writes where an operand lies, and is no view
    flattens = False  # whether `prepare` has something to do
    factors = slice(0, 2)  # of a product, among the inputs

    def infer(self, inputs: Sequence[TensorSpec], attrs: Attrs) -> tuple[Inferred, ...]:
        """Shapes (elements), strides and dtypes of the results."""
        raise NotImplementedError

    def saved(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> tuple[int, ...]:
        """Storages kept for backward, in the order in which PyTorch's generated code unpacks and releases them."""
        return ()

    def in_python(self, attrs: Attrs) -> bool:
        """Whether backward is a Python function, whose locals die from first to last; what C++ unpacked dies from last
        to first.
        """
        return False

    def one_by_one(self, inputs: Sequence[TensorSpec]) -> bool:
        """Whether its gradients go on through views or straight into leaves, which autograd runs one after the other,
        in the order that `backward` gives; else every gradient is in the next node's buffer before a leaf takes its
        own.
        """
        return False

    def attached(self, inputs: Sequence[TensorSpec], attrs: Attrs) -> tuple[int, ...]:
        """Storages that the node itself holds, as attributes of a Python function's context, until the graph goes with
        the loss.
        """
        return ()

    def forward(
        self, m: Machine, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs, into: list[int]
    ) -> None:
        """Makes the requests of the forward execution; appends to `into` the storage of each result (aliases are the
        machine's affair: -1).
        """
        taken = {spec.storage for spec in inputs}
        for out in outputs:
            into.append(-1 if out.storage in taken else m.alloc(out.nbytes))

    def prepare(self, m: Machine, grads: Sequence[Grad]) -> None:
        """What happens to the gradients of the results before backward unpacks what was saved."""

    def backward(
        self,
        m: Machine,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        attrs: Attrs,
        grads: Sequence[Grad],
    ) -> list[tuple[int, Grad]]:
        """Makes the requests of the backward execution and returns (input, gradient) in the order of the graph's edges.

        A gradient of another shape or dtype than its input is reduced or cast by the engine afterwards (autograd's
        validate_outputs).
        """
        raise NotImplementedError

    def flops(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> float:
        """Floating-point operations of the forward execution."""
        return self.flops_per_element * sum(out.elements for out in outputs)

    def read(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> float:
        """Bytes that the forward execution reads; an operand that is expanded is read once."""
        return (
            sum(out.nbytes for out in outputs)
            if self.gathers
            else sum(spec.elements_stored * ITEMSIZE[spec.dtype] for spec in inputs)
        )

    def work(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Work | None:
        """Of the forward execution; None for a view."""
        taken = {spec.storage for spec in inputs}
        if not self.in_place and all(out.storage in taken for out in outputs):
            return None
        written = sum(out.nbytes for out in outputs)
        return Work(
            self.unit,
            (inputs or outputs)[0].dtype,
            self.flops(inputs, outputs, attrs),
            self.read(inputs, outputs, attrs) + written,
        )

    def backward_flops(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> float:
        """Floating-point operations of the backward execution: for products, as many as forward for each operand that
        needs a gradient.
        """
        needed = sum(spec.requires_grad for spec in inputs[self.factors]) if self.unit == "matmul" else 1
        return needed * self.flops(inputs, outputs, attrs)

    def backward_work(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs, saved: Sequence[int]
    ) -> Work | None:
        """Of the backward execution, which reads the gradients of the results and what was saved, and writes the
        gradients of the operands.
        """
        forward = self.work(inputs, outputs, attrs)
        if forward is None:
            return None
        kept = {spec.storage: spec for spec in (*inputs, *outputs) if spec.storage in saved}
        moved = sum(spec.elements_stored * ITEMSIZE[spec.dtype] for spec in kept.values())
        moved += sum(spec.nbytes for spec in (*inputs, *outputs) if spec.requires_grad)
        return Work(self.unit, forward.dtype, self.backward_flops(inputs, outputs, attrs), moved)


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an elementwise operation on shapes a and b."""
    if len(a) < len(b):
        a = (1,) * (len(b) - len(a)) + a
    elif len(b) < len(a):
        b = (1,) * (len(a) - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def like(shape: tuple[int, ...], *operands: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """Strides that TensorIterator gives a result: dense, in the dimension order of the first operand (shape, strides)
    that has its shape.
    """
    for operand, strides in operands:
        if operand == shape:
            if 0 in strides:
                return _dense(shape, _ordered(shape, operands))
            return _dense(shape, sorted(range(len(shape)), key=lambda d: (-strides[d], d)))
    return _dense(shape, range(len(shape)))


def _dense(shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in this order, the slowest first."""
    result, step = [0] * len(shape), 1
    for d in reversed(order):
        result[d] = step
        step *= max(shape[d], 1)
    return tuple(result)


def _ordered(shape: tuple[int, ...], operands: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[int]:
    """TensorIteratorBase::reorder_dimensions: a dimension that an operand is expanded in has no say, and keeps its
    place.
    """
    rows = [strides for operand, strides in operands if operand == shape]

    def swaps(a: int, b: int) -> int:
        for strides in rows:
            if strides[a] and strides[b] and strides[a] != strides[b]:
                return -1 if strides[a] < strides[b] else 1
            if strides[a] and strides[b] and shape[a] > shape[b]:
                return 1
        return 0

    order = list(reversed(range(len(shape))))  # the fastest first
    for i in range(1, len(order)):
        at = i
        for before in range(i - 1, -1, -1):
            found = swaps(order[before], order[at])
            if found < 0:
                break
            if found > 0:
                order[before], order[at] = order[at], order[before]
                at = before
    return order[::-1]


def view_strides(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of a view with the new shape, or None where only a copy will do (at::detail::computeStride)."""
    if not shape:
        return (1,) * len(new) if all(size == 1 for size in new) else None
    if 0 in shape:
        return strides if shape == new else None
    result = [0] * len(new)
    view_d = len(new) - 1
    chunk = strides[-1]
    tensor_numel, view_numel = 1, 1
    for d in range(len(shape) - 1, -1, -1):
        tensor_numel *= shape[d]
        if d == 0 or (shape[d - 1] != 1 and strides[d - 1] != tensor_numel * chunk):
            while view_d >= 0 and (view_numel < tensor_numel or new[view_d] == 1):
                result[view_d] = view_numel * chunk
                view_numel *= new[view_d]
                view_d -= 1
            if view_numel != tensor_numel:
                return None
            if d > 0:
                chunk = strides[d - 1]
                tensor_numel, view_numel = 1, 1
    return tuple(result) if view_d == -1 else None
