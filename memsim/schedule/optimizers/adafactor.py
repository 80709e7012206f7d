"""torch.optim.Adafactor, one tensor at a time (torch/optim/_adafactor.py, _single_tensor_adafactor). It has factored
state, and locals that live from one parameter's update into the next one's.
"""

from __future__ import annotations

from memsim.framework.model import Parameter
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import contiguous
from memsim.machine.storages import Machine
from memsim.tape import Category

SCRATCH = int(Category.SCRATCH)
LOCALS = ("row_mean", "col_mean", "grad_squared", "update")  # in the order of their slots


def state_bytes(p: Parameter) -> list[int]:
    """Returns the bytes of row_var and col_var of a matrix, or of the variance of a vector."""
    item = ITEMSIZE[p.dtype]
    return [p.nbytes] if len(p.shape) < 2 else [item * p.elements // p.shape[-1], item * p.elements // p.shape[-2]]


def update(m: Machine, parameters: list[tuple[int, Parameter]]) -> None:
    """Runs the loop over (layer, parameter)."""
    names: dict[str, int] = {}

    def bind(name: str, storage: int) -> None:
        before = names.get(name)
        names[name] = storage
        if before is not None:
            m.release(before)

    for layer, p in parameters:
        m.layer = layer
        m.at("adafactor.update")
        item, every = ITEMSIZE[p.dtype], tuple(range(len(p.shape)))
        _reduce(m, p.shape, every, p.dtype)
        if len(p.shape) > 1:
            rows, columns = state_bytes(p)
            row_mean = m.alloc(rows, SCRATCH)
            m.reduction_scratch(p.shape, contiguous(p.shape), (len(p.shape) - 1,), p.dtype)
            bind("row_mean", row_mean)
            col_mean = m.alloc(columns, SCRATCH)
            m.reduction_scratch(p.shape, contiguous(p.shape), (len(p.shape) - 2,), p.dtype)
            bind("col_mean", col_mean)
            estimate = m.alloc(p.nbytes, SCRATCH)
            # Stacked matrices go through bmm, which asks for no workspace where it sums over a single element.
            if len(p.shape) == 2:
                m.workspace()
            _mean_of_rows(m, p, rows // item)
        else:
            bind("grad_squared", m.alloc(p.nbytes, SCRATCH))
            estimate = m.alloc(p.nbytes, SCRATCH)
        bind("update", estimate)
        _reduce(m, p.shape, every, p.dtype)
    m.release(*(names[name] for name in LOCALS if name in names))


def _mean_of_rows(m: Machine, p: Parameter, rows: int) -> None:
    """Runs row_var.mean(dim=-2, keepdim=True), which is one number for each matrix. `rows` counts those of all
    matrices.
    """
    matrices = p.elements // (p.shape[-1] * p.shape[-2])
    shape = (matrices, rows // matrices, 1)
    result = m.alloc(matrices * ITEMSIZE[p.dtype], SCRATCH)
    m.reduction_scratch(shape, contiguous(shape), (1,), p.dtype)
    m.release(result)


def _reduce(m: Machine, shape: tuple[int, ...], dims: tuple[int, ...], dtype: str) -> None:
    """Computes a norm or mean that is read and released at once."""
    result = m.alloc(ITEMSIZE[dtype], SCRATCH)
    m.reduction_scratch(shape, contiguous(shape), dims, dtype)
    m.release(result)
