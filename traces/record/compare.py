"""Two folders of recordings of the same runs, event by event: `python compare.py ../h200/real ../h200/virtual`.

A line a run: whether every alloc and free came in the same order with the same bytes; whether the driver was asked for the same at the same places;
and for each value of the steps that differs, by how much at most.
"""

import json
import pathlib
import sys

import numpy as np

VALUES = ("peak_requested", "peak_allocated", "peak_reserved", "end_allocated", "end_reserved")


def requests(tape, actions=("alloc", "free_requested")):
    """(action, bytes) of the events of these actions, as an array."""
    names = list(tape["actions"])
    kept = np.isin(tape["action"], [names.index(name) for name in actions])
    return np.stack([tape["action"][kept].astype(np.int64), tape["bytes"][kept]])


def equal(a, b):
    """Whether two arrays of events are the same."""
    return a.shape == b.shape and bool((a == b).all())


def main(left, right):
    left, right = pathlib.Path(left), pathlib.Path(right)
    print(f"{'run':32}{'events':>9}  requests  driver  values that differ (worst, %)")
    totals = [0, 0, 0, 0]
    for path in sorted(left.glob("*.npz")):
        a, b = np.load(path), np.load(right / path.name)
        one, two = (json.loads((folder / path.name).with_suffix(".json").read_text())["steps"] for folder in (left, right))
        same = equal(requests(a), requests(b)), equal(requests(a, list(a["actions"])), requests(b, list(a["actions"])))
        worst = {key: max(abs(x[key] - y[key]) / x[key] for x, y in zip(one, two, strict=True)) for key in VALUES}
        differ = ", ".join(f"{key} {100 * value:.3f}" for key, value in worst.items() if value)
        print(f"{path.stem:32}{len(a['action']):9,}  {'=' if same[0] else 'order':8}  {'=' if same[1] else 'differ':6}  {differ or '='}")
        totals = [n + int(x) for n, x in zip(totals, (1, *same, not differ), strict=True)]
    print(f"{totals[0]} runs: requests equal in {totals[1]}, every event in {totals[2]}, every value of every step in {totals[3]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
