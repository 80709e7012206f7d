"""A snapshot of a million events: loaded, and replayed under two settings, with the most memory that took.

    python benchmarks/replay.py [events]

The snapshot is written by memsim itself, of as many steps of the 72B LoRA as it takes; its bars are 10 s and 1 GiB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import memsim
from memsim.traces.write_snapshot import write_snapshot

EVENTS = 1_000_000
LOAD = """
import sys, time
from memsim import load_trace, replay
begin = time.perf_counter()
trace = load_trace(sys.argv[1])
loaded = time.perf_counter()
for allocator in ("", "expandable_segments:True"):
    timeline = replay(trace, allocator)
done = time.perf_counter()
print(len(trace.tape), loaded - begin, done - loaded)
"""


def main(events: int) -> None:
    """Prints the figures."""
    step = len(memsim.simulate(memsim.Run.load("qwen2.5-72b-lora", set=("steps=3", "device_memory_gib=200"))).tape) // 3
    steps = 2 + events * 2 // (3 * step)  # an allocation is one event of a snapshot, a free two
    with TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        write_snapshot(
            memsim.simulate(memsim.Run.load("qwen2.5-72b-lora", set=(f"steps={steps}", "device_memory_gib=200"))), path
        )
        size = path.stat().st_size
        begin = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        whole = time.perf_counter() - begin
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{int(shown[0]):,} requests, {size / 2**20:.0f} MiB: loaded in {float(shown[1]):.1f} s, two replays in "
        f"{float(shown[2]):.1f} s"
    )
    print(f"the whole process {whole:.1f} s, at most {most:.2f} GiB resident")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS)
