"""How fast an answer comes: `pytest benchmarks/simulate.py` (pytest-benchmark). The 72B LoRA example, with
checkpointing, two steps.

Prints events a second beside the times; no time is asserted, since a figure depends on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memsim.allocator import allocate
from memsim.api import simulate
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.simulation.pipeline import tape_of_run

EXAMPLE = "qwen2.5-72b-lora"
TWO_STEPS = Run.load(EXAMPLE, set=["steps=2", "device_memory_gib=320"])


def run(arguments: list[str], cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command on the example; with `cache`, that folder is where numba keeps what it compiled."""
    command = [sys.executable, "-m", "memsim.cli", "simulate", EXAMPLE, *arguments]
    env = {**os.environ, **({"NUMBA_CACHE_DIR": str(cache)} if cache else {})}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env)


def test_simulate(benchmark: Any) -> None:
    """A warm process: Run to Timeline."""
    timeline = benchmark.pedantic(simulate, args=(TWO_STEPS,), rounds=40, warmup_rounds=3)
    benchmark.extra_info["events"] = len(timeline.tape)
    print(f"\n{len(timeline.tape):,} events, {len(timeline.tape) / benchmark.stats['median']:,.0f} a second")


def test_tape(benchmark: Any) -> None:
    """Layer graph to Tape."""
    model = model_of(TWO_STEPS)
    benchmark(tape_of_run, TWO_STEPS, model)


def test_allocator(benchmark: Any) -> None:
    """Tape to addresses."""
    tape = tape_of_run(TWO_STEPS)
    benchmark(allocate, tape, None, TWO_STEPS.device_bytes)
    print(f"\n{len(tape) / benchmark.stats['median']:,.0f} events a second")


def test_command_line(benchmark: Any, tmp_path: Path) -> None:
    """The command, from config to HTML, once compiled."""
    page = tmp_path / "report.html"
    result = benchmark.pedantic(run, args=(["-o", str(page)],), rounds=5, warmup_rounds=1)
    assert result.returncode == 0, result.stderr
    assert page.stat().st_size > 0


def test_first_run(benchmark: Any, tmp_path: Path) -> None:
    """The very first run on a machine, compilation included."""
    page = tmp_path / "report.html"
    result = benchmark.pedantic(run, args=(["-o", str(page)], tmp_path / "numba"), rounds=1)
    assert result.returncode == 0, result.stderr
    assert "compiling" in result.stderr
