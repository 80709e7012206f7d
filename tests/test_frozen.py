"""No change of the code moves a Tape, or what a family's graphs keep and drop (tests/freezing.py writes them anew)."""

from __future__ import annotations

import json

import pytest
from freezing import FROZEN, NO_RUNS, ROOT, TAPES, families, frozen_tape, run_at, runs, text_of

from memsim.errors import InputError
from memsim.models import FAMILIES
from memsim.run.job import Run

TAPE_OF: dict[str, str] = json.loads(TAPES.read_text(encoding="utf-8"))


def test_every_run_that_ships_is_frozen() -> None:
    assert runs() == list(TAPE_OF)
    assert len(runs()) == 271


@pytest.mark.parametrize("name", runs())
def test_a_tape_is_what_it_was(name: str) -> None:
    assert frozen_tape(name) == TAPE_OF[name]


@pytest.mark.parametrize("name", runs())
def test_every_run_that_ships_loads(name: str) -> None:
    assert run_at(name).to_yaml()
    assert Run.load(ROOT / name).steps == run_at(name).steps


@pytest.mark.parametrize("name", NO_RUNS)
def test_the_other_files_are_no_runs(name: str) -> None:
    with pytest.raises(InputError, match="unknown key"):
        Run.load(ROOT / name)


def test_every_family_is_frozen() -> None:
    assert list(families()) == list(FAMILIES)


@pytest.mark.parametrize("model_type", families())
def test_a_graph_keeps_and_drops_what_it_did(model_type: str) -> None:
    assert text_of(model_type) == (FROZEN / "drops" / f"{model_type}.txt").read_text(encoding="utf-8")
