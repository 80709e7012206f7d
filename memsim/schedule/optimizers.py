"""What optimizers allocate: state at the first step, temporaries at every step (torch/optim/*.py, torch/nn/utils/clip_grad.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memsim.models.model import Parameter
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

    def clip(self, m: Machine, rows: Rows) -> None:
        """torch.nn.utils.clip_grad_norm_."""
        clip_grad_norm(m, [row for row in rows if row[2].grad is not None])
        m.layer = NO_LAYER


def init_state(name: str, m: Machine, rows: Rows, state: dict[int, list[int]]) -> None:
    """What appears at the first step, parameter by parameter."""
    for layer, p, leaf in rows:
        if leaf.storage in state:
            continue
        m.layer = layer
        m.at(f"{name}.state")
        if name == "adamw-fused":
            sizes = [4, p.nbytes, p.nbytes]
        elif name in ("adamw", "adamw-for-loop"):
            sizes = [p.nbytes, p.nbytes]
        else:
            sizes = []
        state[leaf.storage] = [m.alloc(size, STATE) for size in sizes]


def nothing(m: Machine, rows: Rows) -> None:
    """No temporaries."""


def adamw_foreach(m: Machine, rows: Rows) -> None:
    """_multi_tensor_adam: the square roots of every second moment at once (a list, which dies from its end)."""
    for group in by_dtype(rows):
        roots = []
        for layer, p, _ in group:
            m.layer = layer
            m.at("adamw._foreach_sqrt")
            roots.append((layer, m.alloc(p.nbytes, int(Category.SCRATCH))))
        for layer, storage in reversed(roots):
            m.layer = layer
            m.at("adamw._foreach_sqrt")
            m.release(storage)


def by_dtype(rows: Rows) -> list[list[tuple[int, Parameter, Leaf]]]:
    """torch.utils._foreach_utils._group_tensors_by_device_and_dtype."""
    groups: dict[str, list[tuple[int, Parameter, Leaf]]] = {}
    for row in rows:
        groups.setdefault(row[1].dtype, []).append(row)
    return list(groups.values())


def clip_grad_norm(m: Machine, rows: Rows) -> None:
    """A norm for each gradient, stacked; the total; the clipping coefficient."""
    raise NotImplementedError


TEMPORARIES = {"adamw": adamw_foreach}
