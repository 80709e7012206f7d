"""Run → Timeline: the whole hourglass in one call."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from memsim.allocator.serving import allocate_beyond
from memsim.allocator.settings import Settings as AllocatorSettings
from memsim.errors import InputError
from memsim.framework.model import Model
from memsim.results.answers import Timeline
from memsim.schedule.optimizers.torch_optim import Optimizer
from memsim.schedule.plan import Plan
from memsim.schedule.recording import record
from memsim.simulation.about import about
from memsim.simulation.build import model_of
from memsim.simulation.device import platform_of, rates_of
from memsim.simulation.support import check_kernels, warnings_of
from memsim.stacks.known import STACKS
from memsim.tape import Tape
from memsim.units import duration

if TYPE_CHECKING:
    from memsim.run.job import Run


def tape_of_run(run: Run, model: Model | None = None) -> Tape:
    """Returns every allocator request of the Run: its load and its steps."""
    model = model or model_of(run)
    plan = Plan(
        run.steps,
        run.batch.accumulation,
        run.clip_grad_norm,
        Optimizer(run.optimizer),
        rates_of(run),
        run.optimizer_in_backward,
        run.grad_scaler,
    )
    check_kernels(run, model)
    return record(model, plan, platform_of(run))


def simulate(run: Run, other_order: bool = False, strict: bool = False, measured_step: float | None = None) -> Timeline:
    """Returns what the Run's training steps do to GPU memory, event by event.

    other_order: the other way round, where the framework goes through a Python set of names, whose order differs from
    process to process (Gemma 3).
    strict: a model_type that memsim does not know is refused. Otherwise it is taken for a Llama where its fields are
    Llama's, with a warning.
    measured_step: measured seconds of a step, which calibrate the efficiencies of the time estimate.

    Raises InputError, and Unsupported for what memsim cannot simulate yet.
    """
    settings = AllocatorSettings.parse(run.allocator, STACKS[run.stack].torch)
    with uncollected():
        model = model_of(run, other_order, strict)
        for warning in warnings_of(run, model, strict):
            warnings.warn(warning, stacklevel=2)
        tape = tape_of_run(run, model)
    linux = run.addresses == "linux"
    answer, unlimited = allocate_beyond(tape, settings, run.device_bytes, linux_addresses=linux)
    timeline = Timeline(tape, answer, about(run, model, strict), unlimited)
    return timeline if measured_step is None else calibrated(timeline, measured_step)


def calibrated(timeline: Timeline, seconds: float) -> Timeline:
    """Returns the Timeline with every efficiency times the one factor that makes its last step take `seconds` seconds.
    Raises InputError where the device cannot be that fast.
    """
    time, rates, work = timeline.step_time, timeline.about.rates, timeline.tape.work
    assert time is not None and rates is not None and work is not None
    factor = time.total / seconds
    least = time.total * max(rates.efficiency.matmul, rates.efficiency.attention, rates.efficiency.memory)
    if seconds < least:
        raise InputError(
            f"--measured-step: {duration(seconds)} is less than {rates.device.label} can do by its data sheet "
            f"({duration(least)})"
        )
    tape = replace(timeline.tape, work=work / np.array([factor, factor, 1.0]))
    return Timeline(tape, timeline.answer, replace(timeline.about, rates=rates.scaled(factor)), timeline.unlimited)


@contextmanager
def uncollected() -> Iterator[None]:
    """Runs its block without the cyclic garbage collector. A simulation makes many small objects and no cycles, and the
    collector would look at them all.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
