"""What is frozen: a hash of the Tape of every Run that ships, and what every family's graphs keep and drop.

`python tests/freezing.py` writes both anew. Tapes never change while code only moves; they change where a simulation
was wrong, and then the commit says which and why. The graphs' text may change where a graph is cut otherwise.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from memsim.errors import InputError, Unsupported
from memsim.graph.layer_graph import LayerGraph
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.simulation.pipeline import tape_of_run, uncollected
from memsim.tape import Action, Tape
from memsim.validation.recorded import recorded, run_of

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).parent / "frozen"
TAPES = FROZEN / "tapes.json"
FAMILIES = FROZEN / "families.yaml"
REFUSED = "refused"  # in a hash's place: what the stack of the recording is not held to
NO_RUNS = ("traces/record/optimizers.yaml",)
# Two settings for each family: as it is, and what moves most of the casts and masks.
SETTINGS: dict[str, dict[str, object]] = {
    "bf16": {},
    "autocast": {"precision": "amp-bf16", "attention": "eager"},
}


def runs() -> list[str]:
    """Every file of examples/ and traces/ that is a Run, as a path from the repository's root."""
    found = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("traces/**/*.yaml")])
    return [name for path in found if (name := path.relative_to(ROOT).as_posix()) not in NO_RUNS]


def run_at(name: str) -> Run:
    """The Run of a path that `runs` names; a recording beside it says what stack it was made with."""
    path = ROOT / name
    beside = path.with_suffix(".json")
    return Run.load(run_of(recorded(beside))) if beside.exists() else Run.load(path)


def frozen_tape(name: str) -> str:
    """The hash of a Run's Tape, or that it is refused."""
    try:
        with uncollected():
            return digest(tape_of_run(run_at(name)))
    except Unsupported:
        return REFUSED


def digest(tape: Tape) -> str:
    """sha256 of what a Tape asks for, with storages, phases and operators numbered by their first use."""
    action = tape.action.astype(np.uint8)
    made = tape.storage[action == Action.ALLOC]
    renumbered = np.full(tape.storages + 1, -1, np.int64)  # the last one for -1
    renumbered[made] = np.arange(len(made))
    phases, phase = _by_first_use(tape.phases, tape.phase)
    operators, operator = _by_first_use(tape.operators, tape.operator)
    columns = (
        action,
        renumbered[tape.storage],
        tape.bytes.astype(np.int64),
        tape.stream.astype(np.int64),
        phase,
        operator,
        tape.layer.astype(np.int32),
        tape.category.astype(np.uint8),
    )
    found = hashlib.sha256(json.dumps([phases, operators]).encode())
    for column in columns:
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


def _by_first_use(names: tuple[str, ...], index: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int32]]:
    used, first = np.unique(index, return_index=True)
    order = used[np.argsort(first)]
    to = np.zeros(len(names), np.int32)
    to[order] = np.arange(len(order))
    return [names[i] for i in order], to[index]


def families() -> Mapping[str, dict[str, object]]:
    """model_type → a small config of each family."""
    found: dict[str, dict[str, object]] = yaml.safe_load(FAMILIES.read_text(encoding="utf-8"))
    return found


def text_of(model_type: str) -> str:
    """What the graphs of a family's small config keep and drop, operator by operator."""
    config = {"model_type": model_type, **families()[model_type]}
    return "\n".join(line for name, keys in SETTINGS.items() for line in _text(name, config, keys)) + "\n"


def _text(name: str, config: dict[str, object], keys: dict[str, object]) -> Iterator[str]:
    yield f"# {name}"
    batch = {"size": 2, "sequence": 8, "padding": 0.25 if keys else 0.0}
    base = {"model": config, "batch": batch, "attention": "sdpa"}
    try:
        model = model_of(Run.load({**base, **keys}))
    except InputError as refusal:
        yield f"refused: {str(refusal).split(';')[0]}"
        if keys:
            return
        model = model_of(Run.load({**base, "attention": "eager"}))
    for kind, graph in (("outer", model.outer), *((f"layer {i}", graph) for i, graph in enumerate(model.layer_graphs))):
        yield f"## {kind}"
        yield from _lines(graph)


def _lines(graph: LayerGraph) -> Iterator[str]:
    """A line an operator: number, name, what it keeps for backward, and what dies after it, by what made that."""
    names = {spec.storage: name for name, spec in [*graph.inputs.items(), *graph.parameters.items()]}
    for op in graph.operators:
        for i, out in enumerate(op.outputs):
            names.setdefault(out.storage, f"{op.index}.{i}" if i else f"{op.index}")
        rows = (("keeps", op.saved), ("drops", op.drops), ("operands", op.operands), ("unkept", op.unkept))
        words = [f"{word} {' '.join(names[storage] for storage in storages)}" for word, storages in rows if storages]
        yield f"{op.index} {op.name}: {'; '.join(words)}".rstrip(": ")


def main() -> int:
    """Writes everything that is frozen."""
    TAPES.write_text(json.dumps({name: frozen_tape(name) for name in runs()}, indent=1) + "\n", encoding="utf-8")
    for model_type in families():
        (FROZEN / "drops" / f"{model_type}.txt").write_text(text_of(model_type), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
