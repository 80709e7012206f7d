"""Compares simulated with recorded runs: errors of the peaks, and every number of every step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from memsim.errors import InputError, Unsupported, show
from memsim.stacks.known import GOLDEN, SAME, STACKS, stack_of_versions
from memsim.timeline.curves import Curves
from memsim.traces import recorder
from memsim.validation import diff

METRICS = ("peak_requested", "peak_allocated", "peak_reserved")
VIRTUAL_GPU = "Virtual GPU"
BARE = "base"  # the recorder's own loop, as recordings that vary it name it
LAST_STEP = 1  # event sequences are compared to the end of the second step, from which on steps repeat


@dataclass(frozen=True)
class Peak:
    """A peak, the largest over the steps that both sides finished, in bytes. None where no step was finished."""

    recorded: int | None
    simulated: int | None

    @property
    def exact(self) -> bool:
        """True if both are equal to the byte."""
        return self.recorded == self.simulated

    @property
    def error(self) -> float:
        """Simulated over recorded, less one, in percent."""
        return (
            0.0
            if not self.recorded or self.simulated is None
            else 100 * (self.simulated - self.recorded) / self.recorded
        )


@dataclass(frozen=True)
class RanOut:
    """Says for each side if it ran out of memory."""

    recorded: bool
    simulated: bool | None  # None where the run is not supported


@dataclass(frozen=True)
class Row:
    """A recorded run and its simulation."""

    name: str
    supported: bool
    reason: str | None  # why it is not supported
    oom: RanOut
    peaks: Mapping[str, Peak] = field(default_factory=dict)  # by METRICS
    steps_exact: bool | None = None  # every value of every step that both finished is equal
    difference: str | None = None  # the first value of a step that is not equal
    events_equal: bool | None = None  # None where they were not compared
    events_difference: str | None = None
    refused: bool = False  # not supported because the run itself is wrong, which is a failure

    def within(self, tolerance: float) -> bool:
        """True if both sides agree on out of memory, every peak is within `tolerance` percent, and events are equal
        where they were compared.
        """
        agree = self.oom.recorded == self.oom.simulated and self.events_equal is not False
        return (
            not self.refused
            if not self.supported
            else (agree and all(abs(peak.error) <= tolerance for peak in self.peaks.values()))
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the row's keys, in bytes."""
        data: dict[str, Any] = {
            "name": self.name,
            "supported": self.supported,
            "reason": self.reason,
            "oom": asdict(self.oom),
        }
        data |= {metric: asdict(peak) for metric, peak in self.peaks.items()}
        data |= {"steps_exact": self.steps_exact, "difference": self.difference}
        return data | (
            {}
            if self.events_equal is None
            else {"events_equal": self.events_equal, "events_difference": self.events_difference}
        )


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """Returns the recorded runs of a folder whose names match. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; give one with recorded runs (*.json)")
    found = sorted((path for path in folder.glob("*.json") if fnmatch(path.stem, pattern)), key=lambda path: path.stem)
    if not found:
        raise InputError(f"{folder}: holds no recorded run (*.json) that matches {pattern!r}")
    return found


def recorded(path: Path) -> dict[str, Any]:
    """Returns a recorded run's result. Raises InputError where the file is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {str(error)[:160]}") from error
    if not isinstance(data, dict) or not isinstance(data.get("run"), dict) or not isinstance(data.get("steps"), list):
        raise InputError(f"{path}: is not a recorded run: it needs the keys run (a mapping) and steps (a list)")
    for at, step in enumerate(data["steps"]):
        if not isinstance(step, dict) or not all(isinstance(step.get(metric), int) for metric in METRICS):
            raise InputError(f"{path}: steps[{at}]: needs the whole numbers {', '.join(METRICS)}")
    return data


def settings_beside(trace: Path) -> list[str]:
    """Returns keys of the Run that the result beside a recording (.json beside .npz) decides, as --set takes them.
    Empty where there is no such file.
    """
    beside = trace.with_suffix(".json")
    device = recorded(beside).get("device") if beside.exists() else None
    return (
        [f"{key}={value}" for key, value in (routing_key(device) | addresses_key(device)).items()]
        if beside.exists()
        else []
    )


def run_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The Run that was recorded, with the model's config inline and the stack of its versions: a recording says what it
    was made of, whatever the catalogue says today. Raises Unsupported, of a loop that no Run says too.
    """
    variant = data.get("variant", BARE)
    if variant not in (BARE, None):
        raise Unsupported(f"variant: {show(variant)}, another training loop, is not supported yet; {BARE} is")
    inline = {"model": data["model_config"]} if data.get("model_config") else {}
    return {
        **routing_key(data.get("device")),
        **addresses_key(data.get("device")),
        **data["run"],
        **inline,
        **stack_key(data.get("versions"), data["run"]),
    }


def routing_key(device: object) -> dict[str, str]:
    """Returns the Run's key `routing` for a recording of this device. Every value of the virtual GPU reads as zero,
    even the counts of tokens by expert.
    """
    return {"routing": "zeros"} if device == VIRTUAL_GPU else {}


def addresses_key(device: object) -> dict[str, str]:
    """Returns the Run's key `addresses` for a recording of this device. NVIDIA's real devices were
    recorded on Linux.
    """
    return {"addresses": "linux"} if isinstance(device, str) and device.startswith("NVIDIA") else {}


def stack_key(versions: object, run: Mapping[str, Any]) -> dict[str, str]:
    """Returns the Run's key `stack` for a recording with these versions: nothing for the default. Raises Unsupported
    where no stack has them.
    """
    if not isinstance(versions, Mapping):
        return {}
    adapters = isinstance(run.get("method"), Mapping) and run["method"].get("kind", "full") != "full"
    stack = stack_of_versions({name: version for name, version in versions.items() if name != "peft" or adapters})
    if stack is None:
        have = "; ".join(f"{known.name} is {_versions(known.versions)}" for known in STACKS.values())
        raise Unsupported(f"versions: {_versions(versions)} are no stack that is supported ({have})")
    return {} if stack is GOLDEN else {"stack": stack.name}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in SAME if name in versions)


def check(path: Path, simulate: Callable[[Mapping[str, Any], bool], Curves], events: bool = False) -> Row:
    """Simulates the run of one recording and compares. With `events`, it also compares the event sequences of the .npz
    beside it.

    simulate: takes a Run's keys, and a flag to go through sets the other way round. Where their order is open, the
    order that agrees counts.
    """
    data = recorded(path)
    try:
        run = run_of(data)
        timeline = simulate(run, False)
    except InputError as error:
        return Row(
            path.stem,
            False,
            str(error),
            RanOut(bool(data.get("oom")), None),
            refused=not isinstance(error, Unsupported),
        )
    row = _row(path, data, timeline, events)
    if (row.steps_exact and row.events_equal is not False) or not diff.is_order_open(timeline):
        return row
    other = _row(path, data, simulate(run, True), events)
    return other if other.steps_exact and other.events_equal is not False else row


def _row(path: Path, data: Mapping[str, Any], timeline: Curves, events: bool) -> Row:
    row = row_of(path.stem, data, timeline.to_json())
    trace = path.with_suffix(".npz")
    if not events or not trace.exists():
        return row
    found = diff.align(timeline, recorder.load(trace), last_step=LAST_STEP)
    return Row(
        **{**vars(row), "events_equal": found.equal, "events_difference": None if found.equal else diff.summary(found)}
    )


def row_of(name: str, data: Mapping[str, Any], simulated: Mapping[str, Any]) -> Row:
    """Compares a recorded result with a simulated one of the same keys."""
    pairs = list(zip(data["steps"], simulated["steps"], strict=False))
    peaks = {}
    for metric in METRICS:
        sides = [max((step[metric] for step in side), default=None) for side in zip(*pairs, strict=True)] or [
            None,
            None,
        ]
        peaks[metric] = Peak(sides[0], sides[1])
    differences = list(_differences(data, simulated))
    return Row(
        name=name,
        supported=True,
        reason=None,
        oom=RanOut(bool(data.get("oom")), bool(simulated.get("oom"))),
        peaks=peaks,
        steps_exact=not differences,
        difference=differences[0] if differences else None,
    )


def _differences(data: Mapping[str, Any], simulated: Mapping[str, Any]) -> Iterator[str]:
    """Yields every value of a step that is not equal, in words."""
    ours, theirs = simulated["steps"], data["steps"]
    if len(ours) != len(theirs):
        yield f"{len(theirs)} steps recorded, {len(ours)} simulated"
    for left, right in zip(theirs, ours, strict=False):
        for key, value in left.items():
            if key in right and right[key] != value:
                yield f"step {left.get('step', '?')} {key}: recorded {value}, simulated {right[key]}"


def summarize(rows: list[Row], tolerance: float) -> dict[str, Any]:
    """Returns counts and worst errors over the rows."""
    done = [row for row in rows if row.supported]
    worst: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        row = max(done, key=lambda row: abs(row.peaks[metric].error), default=None)
        worst[metric] = {
            "percent": row.peaks[metric].error if row else 0.0,
            "name": row.name if row and row.peaks[metric].error else None,
        }
    compared = [row for row in done if row.events_equal is not None]
    return {
        "runs": len(rows),
        "supported": len(done),
        "unsupported": len(rows) - len(done),
        "oom_agrees": sum(row.oom.recorded == row.oom.simulated for row in done),
        "exact": {metric: sum(row.peaks[metric].exact for row in done) for metric in METRICS},
        "steps_exact": sum(bool(row.steps_exact) for row in done),
        "worst_error": worst,
        "tolerance_percent": tolerance,
        "past_tolerance": [row.name for row in rows if not row.within(tolerance)],
    } | (
        {"events_compared": len(compared), "events_equal": sum(bool(row.events_equal) for row in compared)}
        if compared
        else {}
    )


def passed(rows: list[Row], tolerance: float) -> bool:
    """True if something was compared and all of it is within the tolerance."""
    return any(row.supported for row in rows) and all(row.within(tolerance) for row in rows)
