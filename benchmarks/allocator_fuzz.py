"""Draws operation lists, gives them to PyTorch's own allocator and to memsim's, and compares every answer.

    python benchmarks/allocator_fuzz.py [--first SEED] [--count LISTS] [--length OPERATIONS]

The lists are wider than those of ../shared/oracle/allocator/fuzz.py: settings are combined freely, sizes crowd around
every threshold, devices are small enough to run out. Prints the first difference of each list that differs, and a
total; exits 1 if any differs. Needs the oracle (../shared/oracle/README.md: setup.sh, then allocator/build.sh); without
it, says so and exits 0. --replay names another program of the same interface. The oracle's program sets the memory
fraction to 1, so limits and garbage collection are not compared here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memsim.allocator import Settings, allocate
from memsim.traces.oplist import tape_of_operations

MIB = 2**20
EDGES = [
    512,
    MIB,
    2 * MIB,
    10 * MIB,
    20 * MIB,
    21 * MIB,
    22 * MIB,
    30 * MIB,
    32 * MIB,
    40 * MIB,
    64 * MIB,
    128 * MIB,
    200 * MIB,
]
NEAR = [-1024, -513, -512, -511, -1, 0, 0, 0, 1, 511, 512, 513, 1024]


def draw_settings(rng: random.Random) -> str:
    """A setting string of up to five keys, each with a value from its edges."""
    large = rng.choice([11, 16, 20, 32, 64]) if rng.random() < 0.2 else 20
    listed = [f"{2**power}:{2 ** rng.randrange(5)}" for power in sorted(rng.sample(range(12), rng.randrange(1, 4)))]
    keys = {
        "large_segment_size_mb": str(large) if large != 20 else "",
        "max_split_size_mb": str(rng.choice([large, large + 1, 32, 64, 65, 200])) if rng.random() < 0.45 else "",
        "max_non_split_rounding_mb": str(rng.choice([large, large + 1, 40, 100])) if rng.random() < 0.25 else "",
        "roundup_power2_divisions": ""
        if rng.random() < 0.6
        else str(2 ** rng.randrange(6))
        if rng.random() < 0.5
        else f"[{','.join(listed)},>:{2 ** rng.randrange(4)}]",
        "expandable_segments": "True" if rng.random() < 0.45 else "",
        "expandable_segments_reserve": rng.choice(["0.3", "0.05", "1G", "7"]) if rng.random() < 0.15 else "",
        "garbage_collection_threshold": str(rng.choice([0.3, 0.6, 0.9])) if rng.random() < 0.3 else "",
        "throw_on_cudamalloc_oom": "True" if rng.random() < 0.06 else "",
    }
    for key in ("max_split_size_mb", "max_non_split_rounding_mb"):
        if keys[key] and int(keys[key]) < large:
            keys[key] = str(large)
    chosen = [f"{key}:{value}" for key, value in keys.items() if value]
    rng.shuffle(chosen)
    return ",".join(chosen)


def draw_bytes(rng: random.Random, scale: int) -> int:
    """A size, often next to a threshold."""
    kind = rng.random()
    if kind < 0.3:
        return max(0, rng.choice(EDGES) + rng.choice(NEAR))
    if kind < 0.5:
        return rng.randint(1, 4096)
    if kind < 0.65:
        return rng.randint(1, MIB)
    if kind < 0.85:
        return rng.randint(MIB, 12 * MIB)
    return rng.randint(10 * MIB, scale * MIB)


def draw(seed: int, length: int | None) -> tuple[NDArray[np.int64], str, int]:
    """An operation list [n, 4], a setting string, and the device's memory in bytes."""
    rng = random.Random(seed)
    settings, streams = draw_settings(rng), rng.choice([1, 1, 2, 3])
    length = length or rng.choice([100, 400, 1500, 5000])
    scale = rng.choice([30, 100, 400])
    palette = [draw_bytes(rng, scale) for _ in range(rng.choice([3, 12, 80]))] if rng.random() < 0.6 else None
    device = rng.choice([64, 150, 400, 1024, 2048, 4096, 80 * 1024]) * MIB + rng.choice([0, 0, MIB, 12345])
    target = rng.choice([0.3, 0.7, 0.95, 1.3]) * device
    empties = rng.choice([0, 0, 0.002, 0.02])
    newest = rng.random()
    rows: list[tuple[int, int, int, int]] = []
    live: list[tuple[int, int]] = []
    held = 0
    for i in range(length):
        dice = rng.random()
        if dice < empties:
            rows.append((2, 0, 0, 0))
        elif live and (dice < 0.35 or held > target or rng.random() < 0.15):
            identity, size = live.pop(-1 if rng.random() < newest else rng.randrange(len(live)))
            held -= size
            rows.append((1, identity, 0, 0))
        elif live and streams > 1 and dice < 0.45:
            rows.append((3, rng.choice(live)[0], 0, rng.randrange(streams)))
        else:
            size = rng.choice(palette) if palette else draw_bytes(rng, scale)
            rows.append((0, i, size, rng.randrange(streams)))
            live.append((i, size))
            held += size
    return np.array(rows, np.int64), settings, device


def oracle() -> Path:
    """Where the oracle's replay program is, if it is set up."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "memsim-oracle" / "replay"


def answers(
    replay: Path, operations: NDArray[np.int64], settings: str, device: int
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The real allocator's answers [n, 2] (address, reserved), and its statistics at the end."""
    with tempfile.TemporaryDirectory() as folder:
        operations.tofile(f"{folder}/ops")
        environment = {**os.environ, "PYTORCH_ALLOC_CONF": settings, "VGPU_MEMORY": str(device)}
        ran = subprocess.run(
            [replay, f"{folder}/ops", f"{folder}/out"], env=environment, check=True, capture_output=True, text=True
        )
        return np.fromfile(f"{folder}/out", np.int64).reshape(-1, 2), json.loads(ran.stdout.strip().splitlines()[-1])


def difference(
    operations: NDArray[np.int64], settings: str, device: int, expected: NDArray[np.int64], stats: dict[str, int]
) -> str:
    """The first difference between the two allocators, in words; empty if there is none."""
    ours = allocate(tape_of_operations(operations), Settings.parse(settings), device, stop_at_oom=False)
    address = np.where(operations[:, 0] == 0, ours.address, 0)
    unequal = np.flatnonzero((address != expected[:, 0]) | (ours.reserved != expected[:, 1]))
    if len(unequal):
        i = int(unequal[0])
        row = operations[i].tolist()
        return (
            f"operation {i} {row}: address {int(expected[i, 0]):#x}, reserved {int(expected[i, 1])}; ours "
            f"{int(address[i]):#x}, {int(ours.reserved[i])}"
        )
    counted = {
        "peak_allocated": int(ours.allocated.max()),
        "peak_reserved": int(max(ours.reserved.max(), stats["peak_reserved"])),  # theirs counts within an operation
        "retries": int(ours.retries[-1]),
        "ooms": int(ours.ooms[-1]),
    }
    return "".join(f"{key}: {stats[key]}; ours {value} " for key, value in counted.items() if stats[key] != value)


def main() -> int:
    """Compares the lists; 1 if any differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many lists")
    parser.add_argument("--length", type=int, default=None, help="operations in a list; drawn if not given")
    parser.add_argument("--replay", type=Path, default=oracle(), help="the real allocator's replay program")
    given = parser.parse_args()
    if not given.replay.exists():
        print("skipped: the oracle is not set up (../shared/oracle/README.md)", file=sys.stderr)
        return 0
    differing = operations_compared = 0
    started = time.perf_counter()
    for seed in range(given.first, given.first + given.count):
        operations, settings, device = draw(seed, given.length)
        expected, stats = answers(given.replay, operations, settings, device)
        operations_compared += len(operations)
        found = difference(operations, settings, device, expected, stats)
        if found:
            differing += 1
            print(f"seed {seed}, {settings or 'default settings'}, {device} bytes: {found}")
    seconds = time.perf_counter() - started
    print(f"{given.count - differing} of {given.count} lists agree, {operations_compared} operations, {seconds:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
