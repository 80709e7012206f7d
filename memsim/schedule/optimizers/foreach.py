"""Temporaries of torch's foreach optimizers: lists of tensors, one for each parameter (torch/optim/*.py,
_multi_tensor_*).

A step goes through the parameters dtype by dtype. Its lists are Python locals: those of one dtype live until those of
the next replace them.
"""

from __future__ import annotations

from collections.abc import Sequence

from memsim.framework.model import Parameter
from memsim.machine.storages import Machine
from memsim.schedule.autograd.engine import Leaf
from memsim.tape import Category

Row = tuple[int, Parameter, Leaf]  # layer, parameter, leaf with its gradient
Rows = Sequence[Row]
Tensors = list[tuple[int, int]]  # (layer, storage)

# Optimizer → (local, the operator that makes it), in the order in which they are made, which is that of their slots.
LOCALS: dict[str, tuple[tuple[str, str], ...]] = {
    "adam": (("exp_avg_sq_sqrt", "_foreach_sqrt"),),
    "adamw": (("exp_avg_sq_sqrt", "_foreach_sqrt"),),
    "adamw-amsgrad": (("exp_avg_sq_sqrt", "_foreach_sqrt"),),
    "nadam": (("exp_avg_sq_sqrt", "_foreach_sqrt"),),
    "radam": (("buffer", "_foreach_sqrt"),),
    "rmsprop": (("avg", "_foreach_sqrt"),),
    "adagrad": (("std", "_foreach_sqrt"), ("numerator", "_foreach_mul")),
    "adadelta": (("std", "_foreach_add"), ("deltas", "_foreach_add")),
    "adamax": (("grouped_grads", "_foreach_abs"),),
}
LOOP_VARIABLES = ("grouped_grads",)  # bound anew where the loop goes on to the next dtype, and not where they are made


def update(name: str, m: Machine, rows: Rows) -> None:
    """Runs a step over (layer, parameter, leaf) with gradients."""
    held: dict[str, tuple[str, Tensors]] = {}
    for group in by_dtype(rows):
        for local in LOOP_VARIABLES:
            if local in held:
                release(m, *held.pop(local))
        for local, operator in LOCALS[name]:
            made = operator, allocate(m, operator, group)
            if local in held:
                release(m, *held[local])
            held[local] = made
    for local, _ in LOCALS[name]:
        if local in held:
            release(m, *held[local])


def allocate(m: Machine, operator: str, group: Rows) -> Tensors:
    """Allocates a new tensor for each parameter."""
    made = []
    for layer, p, _ in group:
        m.layer = layer
        m.at(f"optimizer.{operator}")
        made.append((layer, m.alloc(p.nbytes, int(Category.SCRATCH))))
    return made


def release(m: Machine, operator: str, tensors: Tensors) -> None:
    """Releases a list, from its end."""
    for layer, storage in reversed(tensors):
        m.layer = layer
        m.at(f"optimizer.{operator}")
        m.release(storage)


def by_dtype(rows: Rows) -> list[list[Row]]:
    """Groups rows as torch.utils._foreach_utils._group_tensors_by_device_and_dtype does. The dtype that is seen last
    comes first: the groups come from a std::unordered_map, where libstdc++ puts new entries ahead
    (ATen/native/ForeachUtils.h).
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[1].dtype, []).append(row)
    return list(reversed(groups.values()))
