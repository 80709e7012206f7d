"""How fast an answer comes: `pytest benchmarks/simulate.py` (pytest-benchmark). The 72B LoRA example, with checkpointing, two steps.

Prints events a second beside the times; nothing here is asserted, since a figure depends on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memsim.allocator import allocate
from memsim.run import Run
from memsim.simulation import model_of, simulate, tape_of_run

EXAMPLE = "qwen2.5-72b-lora"
TWO_STEPS = Run.load(EXAMPLE, set=["steps=2", "device_memory_gib=320"])


def test_simulate(benchmark: Any) -> None:
    """A warm process: Run to Timeline."""
    timeline = benchmark(simulate, TWO_STEPS)
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
    command = [sys.executable, "-m", "memsim.cli", "simulate", EXAMPLE, "-o", str(tmp_path / "report.html")]
    benchmark.pedantic(lambda: subprocess.run(command, check=False, capture_output=True), rounds=5, warmup_rounds=1)


def test_first_run(benchmark: Any, tmp_path: Path) -> None:
    """The very first run on a machine, compilation included."""
    command = [sys.executable, "-m", "memsim.cli", "simulate", EXAMPLE]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    benchmark.pedantic(lambda: subprocess.run(command, check=False, capture_output=True, env=env), rounds=1)
