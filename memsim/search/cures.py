"""Allocator settings with which a run that is out of memory fits: each is simulated on the run's own Tape.

Only fragmentation can be cured so. Where more bytes are asked for at once than the device has, nothing is tried.
"""

from __future__ import annotations

import re
from dataclasses import replace

from memsim.allocator.serving import allocate
from memsim.allocator.settings import Settings
from memsim.errors import InputError
from memsim.results.answers import Timeline
from memsim.run.job import Run
from memsim.stacks.known import STACKS
from memsim.timeline.about import Cure

# What is tried, in this order. The first costs nothing but address space; the others keep large blocks whole, or make
# sizes fewer, so that free blocks are used again.
CANDIDATES = (
    "expandable_segments:True",
    "max_split_size_mb:512",
    "max_split_size_mb:128",
    "max_split_size_mb:32",
    "roundup_power2_divisions:8",
)
# Of the Tape's events, that all settings together are given: an event costs a fraction of what it took to simulate it,
# so the answer takes less than twice as long as without.
MOST_SERVED = 2


def with_cures(run: Run, timeline: Timeline) -> Timeline:
    """The Timeline of the Run with the settings that were tried, those that cure it first; none where it fits, or
    where none can.
    """
    return replace(timeline, about=replace(timeline.about, cures=tuple(cures(run, timeline))))


def cures(run: Run, timeline: Timeline) -> list[Cure]:
    """The settings that were tried, those that cure the Run first."""
    if not timeline.out_of_memory or timeline.peak_requested > run.device_bytes:
        return []
    torch = STACKS[run.stack].torch
    own = Settings.parse(run.allocator, torch)
    tried: list[Cure] = []
    served = 0
    for text in texts(run.allocator):
        try:
            settings = Settings.parse(text, torch)
        except InputError:  # this version has no such setting, or not beside the Run's own
            continue
        if settings == own or served >= MOST_SERVED * len(timeline.tape):
            continue
        answer = allocate(timeline.tape, settings, run.device_bytes, linux_addresses=run.addresses == "linux")
        done = answer.processed
        served += done
        retries = int(answer.retries[done - 1]) if done else 0
        peak = int(answer.reserved[:done].max()) if done else 0
        tried.append(Cure(text, peak, answer.out_of_memory is None, retries))
    return sorted(tried, key=lambda cure: not cure.fits)


def texts(own: str) -> list[str]:
    """The setting strings to try on a run: each candidate beside its own settings and alone, and PyTorch's defaults."""
    if not own.strip():
        return list(CANDIDATES)
    both = [text for candidate in CANDIDATES for text in (merged(own, candidate), candidate)]
    return list(dict.fromkeys([both[0], both[1], "", *both[2:]]))


def merged(settings: str, candidate: str) -> str:
    """A setting string with one more setting, in the place of one of the same name."""
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", settings) if part.strip()]
    name = candidate.partition(":")[0]
    return ",".join([*(part for part in parts if part.partition(":")[0].strip() != name), candidate])
