"""The choices of what a layer keeps for backward, with their memory and cost: the Pareto front over all sets of
operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from memsim.cost.roofline import Rates
from memsim.framework.model import Checkpoint, Model
from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.operators import KINDS
from memsim.passes.checkpoint import SAVED, operators_of
from memsim.run.checkpointing import Strategy
from memsim.schedule.autograd.regions import results_kept

# The residual stream, which an addition makes, may be kept by the next layer as well. Then the bytes of two layers
# would not add up.
SHARED = ("add", "dropout")


@dataclass(frozen=True)
class Choice:
    """A strategy for one layer: bytes (requested) that it holds from forward to backward, and seconds
    of recomputation.
    """

    strategy: Strategy
    kept: int
    seconds: float


def recomputation(operators: Iterable[Operator], rates: Rates) -> float:
    """Seconds that a second execution of operators takes. This is the one place that prices them."""
    works = (KINDS[op.kind].work(op.inputs, op.outputs, op.attrs) for op in operators)
    return sum(rates.seconds(work) for work in works if work is not None)


def choices(model: Model, rates: Rates) -> list[list[Choice]]:
    """Returns for each kind of layer the choices that no other beats in both bytes and seconds, from the least
    recomputation on.
    """
    names = [name for name in operators_of(model) if name not in SHARED]
    found = []
    for graph in model.layer_graphs:
        rows = [choice(graph, "none", Checkpoint(), rates), choice(graph, "full", Checkpoint(how="full"), rates)]
        if any(op.attrs.get("core") for op in graph.operators):
            rows.append(choice(graph, "megatron", Checkpoint(how="megatron"), rates))
        present = [name for name in names if SAVED[name] & {op.kind for op in graph.operators}]
        for size in range(1, len(present) + 1):
            for chosen in combinations(present, size):
                saves = frozenset().union(*(SAVED[name] for name in chosen))
                rows.append(choice(graph, {"save": list(chosen)}, Checkpoint(how="selective", saves=saves), rates))
        found.append(front(rows))
    return found


def choice(graph: LayerGraph, strategy: Strategy, checkpoint: Checkpoint, rates: Rates) -> Choice:
    """Returns what a layer with this graph holds and recomputes."""
    own = {spec.storage for spec in graph.parameters.values()} | {
        spec.storage for name, spec in graph.inputs.items() if name != "hidden_states"
    }
    hidden = graph.inputs["hidden_states"].storage
    saving = [op for op in graph.operators if op.requires_grad and op.saved]
    if checkpoint.how == "none":
        again: Sequence[Operator] = ()
        kept = {s for op in saving for s in op.saved}
    elif checkpoint.how == "megatron":
        core = [op for op in graph.operators if op.attrs.get("core")]
        again = _until_last_saved(core)
        kept = {s for op in saving if not op.attrs.get("core") for s in op.saved}
        kept |= set(core[0].attrs["core"])  # type: ignore[call-overload]
    else:
        again = [op for op in _until_last_saved(graph.operators) if op.kind not in checkpoint.saves]
        kept = {hidden} | {s for op in graph.operators if op.kind in checkpoint.saves for s in results_kept(op)}
    # Autocast's casts of weights live while the loss is computed, whatever the layer keeps.
    return Choice(
        strategy, sum(graph.storage_bytes[s] for s in kept - own - set(graph.cached)), recomputation(again, rates)
    )


def _until_last_saved(operators: Sequence[Operator]) -> list[Operator]:
    """Returns the operators that run before torch.utils.checkpoint stops early: at the last saved tensor. An operator's
    operands are there before it runs.
    """
    last = max((i for i, op in enumerate(operators) if op.saved), default=-1)
    if last < 0:  # nothing trains
        return []
    ran = any(out.storage in operators[last].saved for out in operators[last].outputs)
    return list(operators[: last + ran])


def front(rows: Sequence[Choice]) -> list[Choice]:
    """Returns the Pareto front: of all choices that recompute as little, the one with the fewest bytes. Among equals it
    is the earlier, which is the simpler.
    """
    kept: list[Choice] = []
    for row in sorted(rows, key=lambda row: (row.seconds, row.kept)):
        if not kept or row.kept < kept[-1].kept:
            kept.append(row)
    return kept
