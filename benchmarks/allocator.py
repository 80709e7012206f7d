"""How fast memsim's allocator answers, against PyTorch's own on the same operations.

    python benchmarks/allocator.py [--repeat RUNS]

Nanoseconds an operation of a warm replay, best of the runs: allocate() with everything it returns, against the oracle's
`replay OPS --time RUNS` (../shared/oracle/README.md), on the tapes of training runs and on random lists; then memsim's
alone on lists with more and more free blocks, whose time an operation must not grow faster than their logarithm.
Without the oracle the comparison is skipped with a reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.allocator import allocate
from memsim.run.job import Run
from memsim.simulation.pipeline import tape_of_run
from memsim.tape import Tape
from memsim.traces.oplist import operations_of_tape, tape_of_operations

DEVICE = 1 << 42  # bytes; nothing here is about running out
EXAMPLES = Path(__file__).parents[1] / "examples"


def random_list(live: int, operations: int, seed: int = 0) -> NDArray[np.int64]:
    """An operation list [n, 4]: `live` blocks of random sizes, then one is freed and one allocated in turn, at random
    places.
    """
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(256), np.log(4 << 20), live + operations // 2)).astype(np.int64)
    held = np.arange(live)
    rows = np.zeros((live + 2 * (operations // 2), 4), np.int64)
    rows[:live, 1], rows[:live, 2] = held, sizes[:live]
    for i, place in enumerate(rng.integers(0, live, operations // 2).tolist()):
        rows[live + 2 * i] = 1, held[place], 0, 0
        held[place] = live + i
        rows[live + 2 * i + 1] = 0, held[place], sizes[live + i], 0
    return rows


def ours(tape: Tape, repeat: int) -> float:
    """Nanoseconds an operation of memsim's allocator."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        allocate(tape, None, DEVICE)
        best = min(best, time.perf_counter() - started)
    return best / len(tape) * 1e9


def theirs(operations: NDArray[np.int64], repeat: int, replay: Path) -> float:
    """Nanoseconds an operation of PyTorch's allocator."""
    with tempfile.TemporaryDirectory() as folder:
        operations.tofile(f"{folder}/ops")
        environment = {**os.environ, "VGPU_MEMORY": str(DEVICE), "PYTORCH_ALLOC_CONF": ""}
        ran = subprocess.run(
            [replay, f"{folder}/ops", "--time", str(repeat)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    return float(json.loads(ran.stdout.strip().splitlines()[-1])["ns_per_op"])


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=10, help="runs, of which the best counts")
    repeat = parser.parse_args().repeat
    replay = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "memsim-oracle" / "replay"
    compared = replay.exists()
    if not compared:
        print("comparison skipped: the oracle is not set up (../shared/oracle/README.md)", file=sys.stderr)
    print(f"{'operations':44} {'count':>9} {'memsim':>10} {'PyTorch':>10} {'ratio':>7}")
    runs = {
        f"training: {name}": tape_of_run(Run.load(EXAMPLES / f"{name}.yaml"))
        for name in ("qwen2.5-72b-lora", "llama3.1-8b-full")
    }
    lists = {
        f"random: {live} live blocks": tape_of_operations(random_list(live, 4 * max(live, 50_000)))
        for live in (1_000, 10_000, 100_000, 1_000_000)
    }
    for name, tape in (runs | lists).items():
        nanoseconds = ours(tape, repeat)
        against = theirs(operations_of_tape(tape), repeat, replay) if compared and "1000000 " not in name else 0.0
        columns = f"{against:7.1f} ns {against / nanoseconds:6.1f}x" if against else ""
        print(f"{name:44} {len(tape):9} {nanoseconds:7.1f} ns {columns}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
