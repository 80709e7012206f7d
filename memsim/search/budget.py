"""Finds the checkpointing with the least recomputation whose peak fits a budget: `checkpointing: {budget: 24GiB}`.

Layers of a kind are alike. So a plan says how many layers of each kind keep the results of which operators
(choices.py). A mixed-integer program (HiGHS, through scipy) finds the cheapest plan that could fit. While the loss is
computed, all that layers keep is alive at once, so the requested bytes there are a base and a sum over layers, and
reserved memory is no less. That is a bound no plan can beat. Each plan is then simulated. Where fragmentation or
another moment of the step needs more, a smaller sum is allowed, until a plan fits.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from memsim.catalog import devices
from memsim.cost.roofline import Rates
from memsim.errors import InputError, Unreachable
from memsim.framework.model import Checkpoint, Model
from memsim.machine.storages import NO_LAYER
from memsim.passes.checkpoint import checkpointed
from memsim.results.answers import Timeline
from memsim.run.checkpointing import Strategy, in_words
from memsim.run.job import Run
from memsim.search.choices import Choice, choice, choices
from memsim.simulation.build import model_of
from memsim.simulation.device import rates_of
from memsim.simulation.pipeline import simulate
from memsim.simulation.support import check_towers
from memsim.timeline.names import CATEGORY_NAMES
from memsim.units import MIB, duration, gib, read_bytes

SIMULATIONS = 14  # most simulations of plans on the way to one that fits; the same number again to improve it


@dataclass(frozen=True)
class Found:
    """A strategy that fits the budget."""

    strategy: Strategy
    timeline: Timeline
    seconds: float  # seconds of recomputation in a micro-batch
    bound: float  # seconds; no plan of layers recomputes less
    tried: int  # number of strategies simulated

    @property
    def line(self) -> str:
        """The strategy and its cost, in words."""
        least = (
            "which no plan of layers that fits undercuts"
            if self.seconds <= self.bound * (1 + 1e-6)
            else f"no plan of layers that fits recomputes less than {duration(self.bound)}"
        )
        return (
            f"found checkpointing {in_words(self.strategy)}: it recomputes {duration(self.seconds)} a micro-batch, "
            f"{least} ({self.tried} simulated)"
        )


class Search:
    """One search: the Run without its budget, the choices of its layers, and the plans simulated so far."""

    def __init__(self, run: Run, budget: int) -> None:
        self.run, self.budget = run, budget
        self.model: Model = model_of(with_strategy(run, "full"))
        self.rates: Rates = rates_of(run)
        self.choices: list[list[Choice]] = choices(self.model, self.rates)
        self.counts = Counter(self.model.pattern)
        self.simulated: dict[str, Timeline] = {}
        self.prices: dict[tuple[int, Checkpoint], Choice] = {}  # costs of a layer, by kind

    def timeline(self, strategy: Strategy) -> Timeline:
        """Simulates the Run with a strategy, once."""
        key = in_words(strategy)
        if key not in self.simulated:
            self.simulated[key] = simulate(with_strategy(self.run, strategy))
        return self.simulated[key]

    def fits(self, strategy: Strategy) -> bool:
        """True if its simulated peak fits, without the allocator returning its cache to the driver, which stalls every
        step.
        """
        timeline = self.timeline(strategy)
        return (
            not timeline.out_of_memory
            and timeline.peak_reserved <= self.budget
            and not any(step.retries for step in timeline.steps)
        )

    def base(self) -> int:
        """Bytes requested while the loss is computed, without those that layers keep; from the strategy "full"."""
        full = [next(c for c in reversed(rows) if c.strategy == "full") for rows in self.choices]
        kept = sum(full[kind].kept * count for kind, count in self.counts.items())
        return requested_around_loss(self.timeline("full")) - kept - self.arguments()

    def arguments(self) -> int:
        """Bytes of tensors that checkpoints hold only as their arguments, such as position ids. Without checkpoints
        they do not live while the loss is computed.
        """
        held = {
            name: graph.storage_bytes[spec.storage]
            for graph in self.model.layer_graphs
            for name, spec in graph.inputs.items()
            if name in self.model.hold_inputs
            and name != "hidden_states"
            and not any(spec.storage in op.saved for op in graph.operators)
        }
        return sum(held.values())

    def solve(self, allowed: float) -> tuple[list[list[int]], float] | None:
        """Returns the cheapest numbers of layers, by kind and choice, that keep at most `allowed` bytes, and the
        seconds that HiGHS proves to be the least. None where no numbers do.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        flat = [(kind, c) for kind, rows in enumerate(self.choices) for c in rows]
        seconds = np.array([c.seconds for _, c in flat])
        scale = max(float(seconds.max()), 1e-12)
        rules = [LinearConstraint(np.array([[c.kept / MIB for _, c in flat]]), -np.inf, allowed / MIB)]
        rules += [
            LinearConstraint(np.array([[float(k == kind) for k, _ in flat]]), count, count)
            for kind, count in self.counts.items()
        ]
        most = np.array([float(self.counts[kind]) for kind, _ in flat])
        answer = milp(
            seconds / scale,
            constraints=rules,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, most),
            options={"mip_rel_gap": 0.0},
        )
        if answer.x is None:
            return None
        numbers = iter(np.round(answer.x).astype(int).tolist())
        return [[next(numbers) for _ in rows] for rows in self.choices], max(0.0, float(answer.mip_dual_bound) * scale)

    def plan(self, numbers: list[list[int]]) -> Strategy:
        """Returns the plan of these numbers of layers. The layers that recompute most come first: when backward reaches
        them, the layers after them have released what they kept.
        """
        queues = [
            [c.strategy for c, n in reversed(list(zip(rows, counts, strict=True))) for _ in range(n)]
            for rows, counts in zip(self.choices, numbers, strict=True)
        ]
        rows: list[list[object]] = []
        for kind in self.model.pattern:
            strategy = queues[kind].pop(0)
            if rows and rows[-1][1] == strategy:
                rows[-1][0] = int(rows[-1][0]) + 1  # type: ignore[call-overload]
            else:
                rows.append([1, strategy])
        if len(rows) == 1:
            only = rows[0][1]
            assert isinstance(only, (str, dict))
            return only
        return {"plan": rows}

    def of_layers(self, strategy: Strategy) -> list[Choice]:
        """Returns the choice of each layer in a strategy: what it holds and recomputes, each layer priced by itself."""
        rows = zip(self.model.pattern, checkpointed(self.model, strategy).by_layer(), strict=True)
        keys = [(kind, checkpoint) for kind, (checkpoint, _) in rows]
        for kind, checkpoint in set(keys) - self.prices.keys():
            self.prices[kind, checkpoint] = choice(self.model.layer_graphs[kind], "", checkpoint, self.rates)
        return [self.prices[key] for key in keys]

    def seconds(self, strategy: Strategy) -> float:
        """Seconds of recomputation in a micro-batch, by the same prices."""
        return sum(c.seconds for c in self.of_layers(strategy))

    def could_fit(self, strategy: Strategy) -> bool:
        """True if the memory that must be alive at once while the loss is computed leaves room."""
        return self.base() + sum(c.kept for c in self.of_layers(strategy)) <= self.budget


def with_strategy(run: Run, strategy: Strategy) -> Run:
    """Returns the Run with another strategy."""
    return Run.load({**run.plain(), "checkpointing": strategy})


def requested_around_loss(timeline: Timeline) -> int:
    """Largest number of bytes requested at once while all that layers keep is alive: after the forward of the last
    layer, before the first backward of a layer.
    """
    tape, requested = timeline.tape, timeline.whole.requested
    most = 0
    for span in timeline.spans:
        layers = tape.layer[span.start : span.stop]
        inside = np.flatnonzero(layers != NO_LAYER)
        if span.kind == "forward":
            start = span.start + (int(inside[-1]) + 1 if len(inside) else 0)
            most = max(most, int(requested[start : span.stop].max(initial=0)))
        elif span.kind == "backward":
            stop = span.start + (int(inside[0]) if len(inside) else span.stop - span.start)
            most = max(most, int(requested[span.start : stop].max(initial=0)))
    return most


def find(run: Run) -> Found:
    """Returns the strategy with the least recomputation that fits the Run's budget. Raises InputError, and Unreachable
    where none does.
    """
    assert isinstance(run.checkpointing, dict)
    budget = read_bytes(run.checkpointing["budget"])
    if budget > run.device_bytes:
        raise InputError(
            f"checkpointing.budget: {gib(budget)} is more than the device's {gib(run.device_bytes)}{_counted(run)}"
        )
    search = Search(run, budget)
    if search.fits("none"):
        return Found("none", search.timeline("none"), 0.0, 0.0, len(search.simulated))
    best, bound = _by_plans(search)
    best = _by_fixed(search, best)
    if best is None:
        best = _by_segments(search)
    if best is None:
        raise Unreachable(_least(search))
    return Found(best, search.timeline(best), search.seconds(best), bound, len(search.simulated))


def _counted(run: Run) -> str:
    """What the memory of the Run's device counts, in brackets; empty where the Run says its memory itself."""
    device = devices().get(run.device or "")
    return f" ({device.counted})" if device is not None and device.usable == run.device_bytes else ""


def _by_plans(search: Search) -> tuple[Strategy | None, float]:
    """Returns the cheapest plan of layers that is found to fit, and the seconds that no plan can undercut."""
    base = search.base()
    allowed, failed = float(search.budget - base), float(search.budget - base)
    bound: float | None = None
    best: Strategy | None = None
    for _ in range(SIMULATIONS):
        solved = search.solve(allowed)
        if solved is None:
            break
        numbers, proven = solved
        bound = proven if bound is None else bound
        strategy = search.plan(numbers)
        if search.fits(strategy):
            best = strategy
            break
        failed = allowed
        over = max(search.timeline(strategy).peak_reserved - search.budget, 1)
        allowed = _kept(search, numbers) - over
    low, high = allowed, failed  # the first fits, the second does not
    for _ in range(SIMULATIONS if best is not None else 0):
        middle = (low + high) / 2
        solved = search.solve(middle)
        if high - low < MIB or solved is None:
            break
        strategy = search.plan(solved[0])
        if search.fits(strategy):
            low = middle
            best = min(best, strategy, key=search.seconds) if best is not None else strategy
        else:
            high = middle
    if bound is None:  # No plan of layers can fit, so the bound is that of all that can be recomputed.
        bound = sum(max(c.seconds for c in search.choices[kind]) * count for kind, count in search.counts.items())
    return best, bound


def _kept(search: Search, numbers: list[list[int]]) -> int:
    return sum(
        n * c.kept
        for rows, counts in zip(search.choices, numbers, strict=True)
        for c, n in zip(rows, counts, strict=True)
    )


def _by_fixed(search: Search, best: Strategy | None) -> Strategy | None:
    """Returns the best strategy, or a fixed one that recomputes less and also fits."""
    n = len(search.model.pattern)
    fixed: list[Strategy] = ["selective", "megatron", "full"]
    fixed += [{"every": k} for k in range(2, min(n, 5))]
    for strategy in sorted(fixed, key=search.seconds):
        if (
            search.could_fit(strategy)
            and (best is None or search.seconds(strategy) < search.seconds(best))
            and search.fits(strategy)
        ):
            best = strategy
    while best is not None:
        # checkpoints the first k layers: one fewer as long as that fits
        cheaper: Strategy = {
            "first": max(
                [k for k in range(1, n) if search.seconds({"first": k}) < search.seconds(best) * (1 - 1e-9)], default=0
            )
        }
        if cheaper == {"first": 0} or not search.could_fit(cheaper) or not search.fits(cheaper):
            break
        best = cheaper
    return best


def _by_segments(search: Search) -> Strategy | None:
    """Returns a number of segments, where checkpointing every layer does not fit: segments keep fewer inputs than there
    are layers.
    """
    n = len(search.model.pattern)
    root = round(math.sqrt(n))
    for count in dict.fromkeys(c for c in (2 * root, root, max(root // 2, 1)) if 1 <= c < n):
        strategy: Strategy = {"segments": count}
        if len(search.choices) == 1 and search.fits(strategy):
            return strategy
    return None


def _least(search: Search) -> str:
    """Returns one line that says why nothing fits."""
    key, timeline = min(search.simulated.items(), key=lambda row: row[1].peak_reserved)
    held = sorted(
        ((CATEGORY_NAMES[category], count) for category, count in timeline.at_peak().by_category.items()),
        key=lambda row: -row[1],
    )
    words = ", ".join(f"{name} {gib(count)}" for name, count in held[:3])
    return (
        f"checkpointing: no strategy fits {gib(search.budget)}; the least reachable peak is "
        f"{gib(timeline.peak_reserved)}, with {key}, held there by {words}"
    )


def simulate_within(
    run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None
) -> Timeline:
    """Does as `simulate` for a Run with a budget: returns the Timeline of the strategy that is found. Raises
    InputError, and Unreachable.
    """
    check_towers(run)
    found = find(run)
    timeline = found.timeline
    if other_order or strict or measured_step is not None:
        timeline = simulate(with_strategy(run, found.strategy), other_order, strict, measured_step)
    about = timeline.about
    facts = tuple((key, in_words(run.checkpointing) if key == "checkpointing" else value) for key, value in about.facts)
    command = f"memsim simulate {run.argument} -o report.html" if run.argument else ""
    return replace(
        timeline,
        about=replace(
            about,
            name=run.name,
            facts=(*facts, ("found", in_words(found.strategy))),
            run=run.plain(),
            yaml=run.to_yaml(),
            command=command,
            note=found.line,
        ),
    )
