"""Memory that optimizers allocate: state at the first step, temporaries at every step (torch/optim/*.py,
torch/nn/utils/clip_grad.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from memsim.framework.model import Parameter
from memsim.graph.dtypes import ITEMSIZE, promote
from memsim.machine.storages import NO_LAYER, Machine
from memsim.schedule.optimizers import adafactor, foreach, muon
from memsim.schedule.optimizers.bitsandbytes import BUFFERS, CODE_BOOK
from memsim.schedule.optimizers.foreach import Rows, by_dtype
from memsim.tape import Category

STATE = int(Category.OPTIMIZER_STATE)
FUSED = ("adamw-fused",)  # one kernel unscales gradients and steps (_step_supports_amp_scaling)
State = dict[int, list[int]]  # storages of the state, by the parameter's storage


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, by its name in a Run."""

    name: str

    def parts(self, rows: Rows) -> list[tuple[str, Rows]]:
        """Returns the torch optimizers that it consists of, each with its parameters, in the order in which they step
        and release gradients.
        """
        if self.name != "muon":
            return [(self.name, rows)]
        matrices, rest = muon.parts(rows)
        return [("muon", matrices), ("adamw", rest)]

    def step(self, m: Machine, rows: Rows, state: State) -> None:
        """Runs optimizer.step()."""
        for name, some in self.parts(rows):
            some = [row for row in some if row[2].grad is not None]
            init_state(name, m, some, state)
            temporaries(name, m, some)
        m.layer = NO_LAYER

    def zero_grad(self, m: Machine, rows: Rows) -> None:
        """Runs optimizer.zero_grad(set_to_none=True)."""
        for _, some in self.parts(rows):
            for layer, _, leaf in some:
                if leaf.grad is not None:
                    m.layer = layer
                    m.at("zero_grad")
                    m.release(leaf.grad.storage)
                    leaf.grad = None
        m.layer = NO_LAYER

    def created(self, m: Machine, rows: Rows, state: State) -> None:
        """Allocates what the optimizer's constructor does."""
        if self.name == "adagrad":
            init_state(self.name, m, rows, state)
        m.layer = NO_LAYER

    def clip(self, m: Machine, rows: Rows, whole: Sequence[Parameter]) -> None:
        """Runs torch.nn.utils.clip_grad_norm_. `whole` are the trainable parameters of every layer, `rows` those that
        are executed.
        """
        clip_grad_norm(m, [row for row in rows if row[2].grad is not None], whole)
        m.layer = NO_LAYER


def init_state(name: str, m: Machine, rows: Rows, state: State) -> None:
    """Allocates the state that appears at the first step, parameter by parameter. SGD makes its buffers where it steps,
    dtype by dtype.
    """
    if name == "sgd-momentum":
        rows = [row for group in by_dtype(rows) for row in group]
    for layer, p, leaf in rows:
        if leaf.storage in state:
            continue
        m.layer = layer
        m.at(f"{name}.state")
        if name in BUFFERS and BUFFERS[name].quantizes(p) and CODE_BOOKS not in state:
            state[CODE_BOOKS] = [m.alloc(CODE_BOOK, STATE) for _ in BUFFERS[name].stacked]
        sizes = state_bytes(name, p)
        state[leaf.storage] = [m.alloc(size, STATE) for size in sizes]


CODE_BOOKS = -1  # key of the quantization maps, which the first 8-bit parameter brings to the device

# torch's optimizers keep tensors of the parameter's size and dtype. Counts of steps are on the host, except for fused
# kernels.
COPIES = {
    "adam": 2,
    "adamw": 2,
    "adamw-for-loop": 2,
    "adamw-amsgrad": 3,
    "adamax": 2,
    "nadam": 2,
    "radam": 2,
    "adadelta": 2,
    "sgd": 0,
    "sgd-momentum": 1,
    "rmsprop": 1,
    "adagrad": 1,
    "muon": 1,
}


def state_bytes(name: str, p: Parameter) -> list[int]:
    """Bytes of each state tensor of a parameter, in order. Paged state is managed memory of the host,
    and not counted.
    """
    if name in BUFFERS:
        return BUFFERS[name].sizes(p)
    if name in ("adam-fused", "adamw-fused"):
        return [4, p.nbytes, p.nbytes]
    return adafactor.state_bytes(p) if name == "adafactor" else [p.nbytes] * COPIES[name]


def temporaries(name: str, m: Machine, rows: Rows) -> None:
    """Allocates and frees the temporaries of a step. Fused kernels, SGD's and bitsandbytes' work in place."""
    if name in foreach.LOCALS:
        foreach.update(name, m, rows)
    elif name == "muon":
        muon.update(m, rows)
    elif name == "adamw-for-loop":
        adamw_for_loop(m, rows)
    elif name == "adafactor":
        adafactor.update(m, [(layer, p) for layer, p, _ in rows])


def adamw_for_loop(m: Machine, rows: Rows) -> None:
    """Runs _single_tensor_adam: each parameter's denominator lives until the next one's replaces it."""
    held = None
    for layer, p, _ in rows:
        m.layer = layer
        m.at("adamw.denominator")
        root = m.alloc(p.nbytes, int(Category.SCRATCH))
        denominator = m.alloc(p.nbytes, int(Category.SCRATCH))
        m.release(root)
        if held is not None:
            m.release(held)
        held = denominator
    if held is not None:
        m.release(held)


NORM_CHUNK = 65536  # elements that one block of a multi-tensor kernel takes (ATen/native/cuda/MultiTensorApply.cuh)


def clip_grad_norm(m: Machine, rows: Rows, whole: Sequence[Parameter]) -> None:
    """Runs _get_total_norm and _clip_grads_with_norm_: a norm for each gradient, stacked; the total; the clipping
    coefficient.
    """
    norms: list[tuple[int, int]] = []
    for group in by_dtype(rows):
        dtype = group[0][1].dtype
        item, every = ITEMSIZE[dtype], [p for p in whole if p.dtype == dtype]
        m.layer = NO_LAYER
        m.at("clip_grad_norm._foreach_norm")
        chunks = [-(-p.elements // NORM_CHUNK) for p in every]
        if m.platform.software.norms_pad_chunks:
            scratch = [m.alloc(4 * len(chunks) * max(chunks), int(Category.SCRATCH))]
        else:
            offsets = m.alloc(8 * (len(every) + 1), int(Category.SCRATCH))
            scratch = [m.alloc(4 * sum(chunks), int(Category.SCRATCH)), offsets]
        for layer, _, _ in group:
            m.layer = layer
            m.at("clip_grad_norm._foreach_norm")
            norms.append((layer, m.alloc(item, int(Category.SCRATCH))))
        m.layer = NO_LAYER
        m.at("clip_grad_norm._foreach_norm")
        m.release(*scratch)
    m.at("clip_grad_norm.stack")
    item = ITEMSIZE[reduce(promote, (p.dtype for p in whole))]
    stacked = m.alloc(item * len(whole), int(Category.SCRATCH))
    total = m.alloc(item, int(Category.SCRATCH))
    m.release(stacked)
    for layer, norm in reversed(norms):
        m.layer = layer
        m.at("clip_grad_norm.norms")
        m.release(norm)
    m.layer = NO_LAYER
    m.at("clip_grad_norm.coefficient")
    shifted = m.alloc(item, int(Category.SCRATCH))
    reciprocal = m.alloc(item, int(Category.SCRATCH))
    coefficient = m.alloc(item, int(Category.SCRATCH))
    m.release(reciprocal, shifted)
    clamped = m.alloc(item, int(Category.SCRATCH))
    m.release(coefficient, clamped, total)
