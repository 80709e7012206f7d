"""torch.optim.Muon, one matrix at a time (torch/optim/_muon.py). Its locals live from one matrix's update into the next
one's.

`optimizer: muon` is the recipe of Muon's authors. Muon takes matrices of the decoder layers, and LoRA's matrices.
AdamW, which steps after it, takes embeddings, head, norms, biases and stacks of experts.
"""

from __future__ import annotations

from memsim.framework.model import Parameter
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layout import contiguous
from memsim.machine.storages import NO_LAYER, Machine
from memsim.schedule.optimizers.foreach import Row, Rows
from memsim.tape import Category

SCRATCH = int(Category.SCRATCH)
DTYPE = "bf16"  # dtype of the Newton-Schulz iteration
ITERATIONS = 5


def is_matrix(layer: int, p: Parameter) -> bool:
    """True if Muon takes a parameter."""
    return len(p.shape) == 2 and (layer != NO_LAYER or ".lora_" in p.name)


def parts(rows: Rows) -> tuple[list[Row], list[Row]]:
    """Returns the rows of Muon and the rows of AdamW."""
    return [row for row in rows if is_matrix(row[0], row[1])], [row for row in rows if not is_matrix(row[0], row[1])]


def update(m: Machine, rows: Rows) -> None:
    """Runs _single_tensor_muon over (layer, parameter, leaf). `update` is the one local that is a tensor of its own."""
    held = None
    for layer, p, _ in rows:
        m.layer = layer
        m.at("muon.update")
        nesterov = m.alloc(p.nbytes, SCRATCH)
        if held is not None:
            m.release(held)
        held = orthogonalized(m, p)
        m.release(nesterov)
    if held is not None:
        m.release(held)


def orthogonalized(m: Machine, p: Parameter) -> int:
    """Runs _zeropower_via_newtonschulz and returns the storage of its result.

    addmm goes through cuBLASLt where the added matrix is contiguous and no dimension is 1 (seen in recordings of torch
    2.15). A matrix that is taller than wide is worked on as its transpose, a view.
    """
    item = ITEMSIZE[DTYPE]
    least = min(p.shape)
    through_lt = not m.platform.software.adds_matrices_by_cublas
    result = m.alloc(item * p.elements, SCRATCH)
    norm = m.alloc(item, SCRATCH)
    m.reduction_scratch(p.shape, contiguous(p.shape), (0, 1), DTYPE)
    clamped = m.alloc(item, SCRATCH)
    m.release(norm, clamped)
    grams: dict[str, int] = {}
    flipped = p.shape[0] > p.shape[1]
    for i in range(ITERATIONS):
        for name in ("gram_matrix", "gram_update"):
            made = m.alloc(item * least**2, SCRATCH)
            m.workspace(lt=through_lt and name == "gram_update" and least > 1)
            if name in grams:
                m.release(grams[name])
            grams[name] = made
        following = m.alloc(item * p.elements, SCRATCH)
        m.workspace(lt=through_lt and least > 1 and not (flipped and i == 0))
        m.release(result)
        result = following
    m.release(*grams.values())
    return result


def flops(p: Parameter) -> float:
    """Floating-point operations of the iteration's products: matrix times transpose, square times square, square times
    matrix.
    """
    least, most = sorted(p.shape)
    return ITERATIONS * 2.0 * least * least * (2 * most + least)
