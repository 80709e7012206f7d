"""What `import memsim` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import memsim

NAMES = ["Comparison", "Run", "Timeline", "compare", "load_trace", "replay", "simulate"]
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


def test_the_public_names() -> None:
    assert memsim.__all__ == NAMES
    assert set(NAMES) <= set(dir(memsim))
    assert all(getattr(memsim, name) is not None for name in NAMES)
    with pytest.raises(AttributeError, match="module 'memsim' has no attribute 'simulat'"):
        _ = memsim.simulat  # type: ignore[attr-defined]


def test_what_simulate_compare_and_replay_return_are_the_public_types() -> None:
    timeline = memsim.simulate(memsim.Run(model=SMALL, steps=2))
    assert type(timeline) is memsim.Timeline
    assert type(memsim.replay(timeline.tape)) is memsim.Timeline
    assert type(memsim.compare([timeline, timeline])) is memsim.Comparison


def test_packages_hand_on_what_could_be_imported_from_them() -> None:
    from memsim.allocator import Settings, allocate
    from memsim.cli import app, main
    from memsim.graph import LayerGraph
    from memsim.models import FAMILIES, build
    from memsim.run import Run
    from memsim.simulation import model_of, simulate
    from memsim.stacks import STACKS
    from memsim.timeline import About
    from memsim.traces.load import load_trace

    assert Run is memsim.Run and load_trace is memsim.load_trace
    assert all((Settings, allocate, app, main, LayerGraph, FAMILIES, build, model_of, simulate, STACKS, About))


def test_importing_memsim_imports_nothing_heavy() -> None:
    code = "import memsim, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "networkx", "numba", "pydantic", "typer", "rich", "scipy", "plotly"} & set(loaded)
