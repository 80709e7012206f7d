"""Run → Timeline: builds the model, records its Tape, asks the allocator."""

from __future__ import annotations

from memsim.simulation.build import model_of as model_of
from memsim.simulation.pipeline import simulate as simulate, tape_of_run as tape_of_run
