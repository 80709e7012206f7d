"""Estimates when events happen: the work that is executed before each event, in seconds (cost/roofline.py).

Work counts before the next event, whatever layer that event is of. Every layer does its work alike, so a layer's sum
stays right.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from memsim.cost.roofline import Rates
from memsim.cost.work import Work
from memsim.framework.model import Parameter
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import Operator
from memsim.machine.storages import BACKWARD, RECOMPUTED, Machine
from memsim.operators import KINDS
from memsim.schedule.optimizers import muon
from memsim.schedule.optimizers.traffic import optimizer_bytes
from memsim.tape import AGAIN, FLOPS, SECONDS

Columns = NDArray[np.float64]


def work_of(machine: Machine, rates: Rates | None) -> Columns:
    """Returns the work [n, 3] of a machine's n events, zeros without rates."""
    columns = np.zeros((len(machine.actions) + 1, 3))
    if rates is None:
        return columns[:-1]
    known: dict[tuple[int, bool], tuple[float, float]] = {}
    seconds, flops = [], []
    for _, op, how in machine.work:
        if isinstance(op, Operator):
            key = id(op), how == BACKWARD
            if key not in known:
                known[key] = _estimate(op, key[1], rates)
            took, products = known[key]
        else:
            took, products = rates.copied(op), 0.0
        seconds.append(took)
        flops.append(products)
    if machine.work:
        events, _, hows = zip(*machine.work, strict=True)
        at, took_each, again, n = np.array(events), np.array(seconds), np.array(hows) == RECOMPUTED, len(columns)
        columns[:, SECONDS] = np.bincount(at, took_each, n)
        columns[:, AGAIN] = np.bincount(at, took_each * again, n)
        columns[:, FLOPS] = np.bincount(at, np.array(flops) * ~again, n)
    if len(columns) > 1:
        columns[-2] += columns[-1]  # work that is done after the last event
    return columns[:-1]


def _estimate(op: Operator, backward: bool, rates: Rates) -> tuple[float, float]:
    kind = KINDS[op.kind]
    work: Work | None
    if backward:
        work = kind.backward_work(op.inputs, op.outputs, op.attrs, op.saved)
    else:
        work = kind.work(op.inputs, op.outputs, op.attrs)
    return (0.0, 0.0) if work is None else (rates.seconds(work), work.flops if work.unit != "vector" else 0.0)


def optimizer_seconds(name: str, clips: bool, parameters: Iterable[tuple[int, Parameter]], rates: Rates) -> float:
    """Seconds of one optimizer step over trainable parameters, given with their layers."""
    moved, tensors, flops = 0.0, 0, 0.0
    for layer, p in parameters:
        matrix = name == "muon" and muon.is_matrix(layer, p)
        moved += p.elements * optimizer_bytes(
            "adamw" if name == "muon" and not matrix else name, ITEMSIZE[p.dtype], clips
        )
        flops += muon.flops(p) if matrix else 0
        tensors += 1
    seconds = moved / (rates.bandwidth * rates.efficiency.memory) + flops / (
        rates.peak(muon.DTYPE) * rates.efficiency.matmul
    )
    return max(seconds, rates.efficiency.launch * min(tensors, 100))


def with_optimizer(
    work: Columns | None, phase: NDArray[np.int32], phases: tuple[str, ...], seconds: float, during: str = "optimizer"
) -> Columns | None:
    """Returns the work, with the optimizer's time spread evenly over the events of each phase of this kind."""
    if work is None:
        return None
    of_kind = np.array([name.endswith(f"/{during}") for name in phases], bool)
    mine = of_kind[phase]
    counts = np.bincount(phase, minlength=len(phases))
    work[mine, SECONDS] += seconds / counts[phase[mine]]
    return work
