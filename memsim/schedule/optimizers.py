"""What optimizers allocate: state at the first step, temporaries at every step (torch/optim/*.py, torch/nn/utils/clip_grad.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memsim.dtypes import ITEMSIZE
from memsim.models.model import Parameter
from memsim.schedule import adafactor
from memsim.schedule.autograd import Leaf
from memsim.schedule.machine import NO_LAYER, Machine
from memsim.tape import Category

Rows = Sequence[tuple[int, Parameter, Leaf]]
STATE = int(Category.OPTIMIZER_STATE)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer by its Run name."""

    name: str

    def step(self, m: Machine, rows: Rows, state: dict[int, list[int]]) -> None:
        """optimizer.step()."""
        rows = [row for row in rows if row[2].grad is not None]
        init_state(self.name, m, rows, state)
        TEMPORARIES.get(self.name, nothing)(m, rows)
        m.layer = NO_LAYER

    def created(self, m: Machine, rows: Rows, state: dict[int, list[int]]) -> None:
        """What the optimizer's constructor allocates."""
        if self.name == "adagrad":
            init_state(self.name, m, rows, state)
        m.layer = NO_LAYER

    def clip(self, m: Machine, rows: Rows, whole: Sequence[Parameter]) -> None:
        """torch.nn.utils.clip_grad_norm_; `whole` are the trainable parameters of every layer, `rows` those that are executed."""
        clip_grad_norm(m, [row for row in rows if row[2].grad is not None], whole)
        m.layer = NO_LAYER


def init_state(name: str, m: Machine, rows: Rows, state: dict[int, list[int]]) -> None:
    """What appears at the first step, parameter by parameter."""
    for layer, p, leaf in rows:
        if leaf.storage in state:
            continue
        m.layer = layer
        m.at(f"{name}.state")
        if name in QUANTIZED and keeps_8bit(name, p) and CODE_BOOKS not in state:
            state[CODE_BOOKS] = [m.alloc(1024, STATE) for _ in range(QUANTIZED[name])]
        sizes = state_bytes(name, p)
        state[leaf.storage] = [m.alloc(size, STATE) for size in sizes]


def state_bytes(name: str, p: Parameter) -> list[int]:
    """Bytes of each state tensor of a parameter, in order. Paged state is managed memory of the host, and not here."""
    if name in QUANTIZED:
        return bitsandbytes_state(name, p)
    if name == "adamw-fused":
        return [4, p.nbytes, p.nbytes]
    if name in ("adamw", "adamw-for-loop", "nadam"):
        return [p.nbytes, p.nbytes]
    if name == "adafactor":
        return adafactor.state_bytes(p)
    return [p.nbytes] if name in ("sgd-momentum", "rmsprop", "adagrad") else []


QUANTIZED = {"adamw-8bit": 2, "paged-adamw-8bit": 2, "paged-adamw": 2, "lion-8bit": 1}  # bitsandbytes' optimizers: state tensors of each
LEAST_8BIT = 4096  # elements; smaller parameters keep fp32 state (bitsandbytes/optim/optimizer.py, min_8bit_size)
LEAST_PAGED = 100_000  # elements, from which on paged optimizers page (get_state_buffer)


CODE_BOOKS = -1  # key of the quantization maps, 256 fp32 values each, which the first 8-bit parameter brings to the device


def keeps_8bit(name: str, p: Parameter) -> bool:
    """Whether a parameter's state is 8-bit."""
    return name != "paged-adamw" and p.elements >= LEAST_8BIT


def bitsandbytes_state(name: str, p: Parameter) -> list[int]:
    """init_state of Optimizer2State and Optimizer1State: 8-bit blocks of 256 with an fp32 maximum each, or fp32."""
    count, eight = QUANTIZED[name], keeps_8bit(name, p)
    paged = name.startswith("paged") and p.elements >= LEAST_PAGED
    buffers = [] if paged else [p.elements if eight else 4 * p.elements] * count
    return buffers + ([4 * -(-p.elements // 256)] * count if eight else [])


def nothing(m: Machine, rows: Rows) -> None:
    """No temporaries."""


def foreach_roots(m: Machine, rows: Rows) -> None:
    """_multi_tensor_adam, _multi_tensor_nadam, _multi_tensor_rmsprop: the square roots of every second moment at once."""
    for group in by_dtype(rows):
        release_list(m, "_foreach_sqrt", foreach(m, "_foreach_sqrt", group))


def adagrad(m: Machine, rows: Rows) -> None:
    """_multi_tensor_adagrad: the square roots of the sums, and the gradients times the rates."""
    for group in by_dtype(rows):
        std, numerator = foreach(m, "_foreach_sqrt", group), foreach(m, "_foreach_mul", group)
        release_list(m, "_foreach_sqrt", std)
        release_list(m, "_foreach_mul", numerator)


def foreach(m: Machine, name: str, group: Rows) -> list[tuple[int, int]]:
    """A new tensor for each parameter: (layer, storage)."""
    made = []
    for layer, p, _ in group:
        m.layer = layer
        m.at(f"optimizer.{name}")
        made.append((layer, m.alloc(p.nbytes, int(Category.SCRATCH))))
    return made


def release_list(m: Machine, name: str, tensors: list[tuple[int, int]]) -> None:
    """A list dies from its end."""
    for layer, storage in reversed(tensors):
        m.layer = layer
        m.at(f"optimizer.{name}")
        m.release(storage)


def by_dtype(rows: Rows) -> list[list[tuple[int, Parameter, Leaf]]]:
    """torch.utils._foreach_utils._group_tensors_by_device_and_dtype: a C++ unordered_map, which puts a new key ahead of the others."""
    groups: dict[str, list[tuple[int, Parameter, Leaf]]] = {}
    for row in rows:
        groups.setdefault(row[1].dtype, []).append(row)
    return list(reversed(groups.values()))


def adamw_for_loop(m: Machine, rows: Rows) -> None:
    """_single_tensor_adam: each parameter's denominator lives until the next one's replaces it."""
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
    """_get_total_norm and _clip_grads_with_norm_: a norm for each gradient, stacked; the total; the clipping coefficient."""
    norms: list[tuple[int, int]] = []
    for group in by_dtype(rows):
        dtype = group[0][1].dtype
        item, every = ITEMSIZE[dtype], [p for p in whole if p.dtype == dtype]
        m.layer = NO_LAYER
        m.at("clip_grad_norm._foreach_norm")
        chunks = [-(-p.elements // NORM_CHUNK) for p in every]
        if m.stack.software.norms_pad_chunks:
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
    item = max(ITEMSIZE[p.dtype] for _, p, _ in rows)  # as they are promoted
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


def adafactor_update(m: Machine, rows: Rows) -> None:
    """_single_tensor_adafactor."""
    adafactor.update(m, [(layer, p) for layer, p, _ in rows])


TEMPORARIES = {
    "adamw": foreach_roots,
    "nadam": foreach_roots,
    "rmsprop": foreach_roots,
    "adagrad": adagrad,
    "adamw-for-loop": adamw_for_loop,
    "adafactor": adafactor_update,
}
