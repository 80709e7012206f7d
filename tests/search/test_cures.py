"""Allocator settings that cure a run which is out of memory: each is what the Run under it would do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from memsim.api import simulate
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.report.page import report_html
from memsim.run.job import Run
from memsim.search import cures as searching
from memsim.search.cures import CANDIDATES, merged, with_cures
from memsim.timeline.about import Cure
from memsim.units import gib

OOM = Path(__file__).parents[2] / "traces" / "golden" / "qwen2.5-0.5b-full-oom.yaml"  # 5.9 GiB; fragmentation fails it


@pytest.mark.parametrize("changes", [(), ("allocator=max_split_size_mb:128",), ("addresses=linux",)])
def test_each_is_what_the_run_under_it_does(changes: tuple[str, ...]) -> None:
    run = Run.load(OOM, set=changes)
    found = with_cures(run, simulate(run)).about.cures
    assert found is not None and len(found) >= 3 and found[0].fits
    assert [cure.fits for cure in found] == sorted((cure.fits for cure in found), reverse=True)
    for cure in found:
        again = simulate(Run.load(run, set=[f"allocator={cure.set}"]))
        assert again.out_of_memory is not cure.fits, cure
        answer = again.answer
        assert cure.peak_reserved == int(answer.reserved[: answer.processed].max()) <= run.device_bytes
        assert cure.retries == int(answer.retries[answer.processed - 1])


def test_the_headline_ends_with_the_cure_and_the_page_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.load(OOM)
    timeline = with_cures(run, simulate(run))
    cure = next(cure for cure in timeline.about.cures or () if cure.fits)
    assert cure.set == "expandable_segments:True"
    words = f"What cures it: expandable_segments:True: {gib(cure.peak_reserved)}, fits, giving back its cache once."
    assert timeline.headline().endswith(words) and words in unescape(report_html(timeline))
    assert main(["simulate", str(OOM)]) == 0
    assert words in capsys.readouterr().out
    assert main(["simulate", str(OOM), "--no-cures"]) == 0
    assert "cures" not in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(OOM), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cures"]
    assert all(set(row) == {"set", "peak_reserved", "fits"} for row in rows)
    assert [row["set"] for row in rows if row["fits"]] == ["expandable_segments:True"] and len(rows) > 2
    assert main(["simulate", str(OOM), "--json", "--no-cures"]) == 0
    assert "cures" not in json.loads(capsys.readouterr().out)


def test_nothing_is_tried_where_nothing_can_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "allocate", lambda *_, **__: pytest.fail("was tried"))
    for changes in (["device_memory_gib=80"], ["device_memory_gib=4"]):  # it fits; more is asked for than there is
        run = Run.load(OOM, set=changes)
        found = with_cures(run, simulate(run))
        assert found.about.cures == () and found.to_json()["cures"] == [] and "cures" not in found.headline()


def test_where_none_cures_it_that_is_said() -> None:
    timeline = simulate(Run.load(OOM))
    tried = tuple(Cure(name, 2**30, False) for name in CANDIDATES[:2])
    assert (
        replace(timeline, about=replace(timeline.about, cures=tried))
        .headline()
        .endswith(
            "None of the allocator settings that were tried cures it (expandable_segments:True, max_split_size_mb:512)."
        )
    )


def test_the_settings_together_are_given_a_bounded_number_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"max_split_size_mb:{size}" for size in range(100, 110)]
    monkeypatch.setattr(searching, "CANDIDATES", ("expandable_segments:True", "expandable_segments:True", *names))
    run = Run.load(OOM)
    assert len(with_cures(run, simulate(run)).about.cures or ()) == 2, "two that serve all the events are enough"


def test_a_setting_that_the_version_lacks_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "CANDIDATES", ("no_such_setting:1", "expandable_segments:True"))
    run = Run.load(OOM)
    assert [cure.set for cure in with_cures(run, simulate(run)).about.cures or ()] == ["expandable_segments:True"]


@pytest.mark.parametrize(
    ("settings", "candidate", "both"),
    [
        ("", "a:1", "a:1"),
        ("b:2", "a:1", "b:2,a:1"),
        ("a:2, b:3", "a:1", "b:3,a:1"),
        ("r:[256:1,512:2],a:3", "a:1", "r:[256:1,512:2],a:1"),
        ("r:[256:1,512:2],b:3", "r:8", "b:3,r:8"),
    ],
)
def test_a_setting_takes_the_place_of_its_like(settings: str, candidate: str, both: str) -> None:
    assert merged(settings, candidate) == both


def test_what_is_tried_beside_settings_of_the_runs_own() -> None:
    found = searching.texts("max_split_size_mb:128")
    assert found[:3] == ["max_split_size_mb:128,expandable_segments:True", "expandable_segments:True", ""]
    assert len(found) == len(set(found)) and searching.texts("") == list(CANDIDATES)


def test_names_are_pytorchs() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+:\w+", name) for name in CANDIDATES)
    with pytest.raises(InputError):
        simulate(Run.load("gpt2", set=["allocator=no_such_setting:1"]))
