"""Fuzzes what memsim reads: `python benchmarks/fuzz_inputs.py [MINUTES] [SEED] [KIND]`, five minutes of all kinds.

Each file is one of tests/hostile.py's, changed by chance. It has to be read and replayed, or simulated, or refused by
an InputError of one line that names it, within 5 seconds and 1 GiB. What does not is kept under fuzz/.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile

from memsim import Run, replay, simulate
from memsim.cli.running import simulated
from memsim.errors import InputError, Unreachable
from memsim.results.write import SUFFIXES, write
from memsim.search.allocators import outcome
from memsim.traces.load import load_trace

SECONDS, GIB = 5.0, 1 << 30
RUN_AT_MOST = 2**21  # tokens and layers of a run that is simulated: a large one is allowed to take long


class Late(Exception):
    """A file took longer than it may."""


def use(path: Path) -> str:
    """Reads the file and does with it what the command does; "read" or "refused". Raises whatever is a fault."""
    trace = None
    try:
        if path.suffix == ".yaml":
            run = Run.load(path)
            layers = run.config.get("num_hidden_layers", 2)
            small = isinstance(layers, int) and layers * run.steps * run.batch.accumulation < 500
            if small and run.batch.size * run.batch.sequence < RUN_AT_MOST:
                simulated(run)  # as the command does, whose errors name the file
            return "read"
        trace = load_trace(path)
        outcome(trace, None, None, None, False)
        timeline = replay(trace)
        for suffix in SUFFIXES if timeline.answer.processed and hash(path.read_bytes()) % 20 == 0 else ():
            write(timeline, path.with_name(f"written{suffix}"), suffix)
    except Unreachable:
        return "read"
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 2000 or (trace is None and path.name not in str(error)):
            raise AssertionError(f"not a line: {str(error)[:500]}") from error
        return "refused"
    return "read"


def main() -> int:
    """Prints how many files of each kind were read, refused, and at fault; 1 where any was."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    only = sys.argv[3] if len(sys.argv) > 3 else ""

    def late(number: int, frame: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    counts: Counter[tuple[str, str]] = Counter()
    slowest, end = 0.0, time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        simulate(Run.load(hostile.write(Path(folder), ".yaml", hostile.RUN.encode())))  # compiles
        for kind, suffix, data in hostile.files(seed, only):
            if time.monotonic() > end:
                break
            begun = time.monotonic()
            path = hostile.write(Path(folder), suffix, data)
            signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
            try:
                found = use(path)
            except Exception:
                found = "fault"
                last = traceback.format_exc().strip().splitlines()
                kept = Path("fuzz") / f"{sum(counts.values())}{suffix}"
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(data)
                print(f"{kept}: {kind}: {last[-1][:200]} {last[-3].strip()[:160] if len(last) > 2 else ''}", flush=True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.monotonic() - begun
            slowest = max(slowest, took)
            counts[kind, "slow" if found != "fault" and took > SECONDS else found] += 1
    for (kind, found), count in sorted(counts.items()):
        print(f"{kind}: {count} {found}")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{sum(counts.values())} files, the slowest {slowest:.1f} s, at most {most / GIB:.2f} GiB")
    return 1 if most > GIB or any(found in ("fault", "slow") for _, found in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
