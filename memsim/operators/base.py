"""What every operator says of itself: its results, what it keeps for backward, and the requests it makes, forward and
backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsim.cost.work import Work
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
