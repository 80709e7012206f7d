"""The comparison page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, start
from made import training

from memsim.allocator import allocate
from memsim.api import compare
from memsim.results.side_by_side import Comparison
from memsim.run.job import Run

pytestmark = pytest.mark.browser
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 50000,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = start()
    yield found
    found.quit()


@pytest.fixture(scope="module")
def found() -> Comparison:
    runs = [
        Run(model=MODEL, checkpointing=kind, batch={"size": size, "sequence": 256}, device_memory_gib=0.85)
        for kind in ("none", "full")
        for size in (1, 4)
    ]
    made = compare(
        runs,
        labels=[f"{kind} & <b>{size}" for kind in ("none", "full") for size in (1, 4)],
        command="memsim compare x -o c.html",
    )
    assert {case.fits for case in made.cases} == {True, False}
    return made


@pytest.fixture
def page(browser: Browser, found: Comparison, tmp_path: Path) -> Iterator[Browser]:
    found.write_html(tmp_path / "compare.html")
    browser.look()
    browser.open(tmp_path / "compare.html")
    yield browser
    assert browser.run("return document.getElementById('failed').hidden"), browser.run(
        "return document.getElementById('failed').textContent"
    )
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.endswith("compare.html")] == []


def test_the_page_holds_one_exact_step_of_every_run(page: Browser, found: Comparison) -> None:
    script = (
        "return window.memsim.comparison.cases.map((one) => [Array.from(one.curves.allocated), "
        "Array.from(one.curves.reserved)])"
    )
    from memsim.report.compare_page import step_of

    for (allocated, reserved), case in zip(page.run(script), found.cases, strict=True):
        lo, hi = step_of(case.timeline)
        assert allocated == case.timeline.whole.allocated[lo:hi].tolist()
        assert reserved == case.timeline.whole.reserved[lo:hi].tolist()


def test_no_peak_is_lost_in_drawing(page: Browser) -> None:
    script = """const c = window.memsim.comparison; return c.cases.map((one) => {
    const drawn = c.sample(one, 0, c.end(), 7).map((event) => one.curves.allocated[event]);
    return [Math.max(...drawn), Math.max(...one.curves.allocated)]; })"""
    for drawn, real in page.run(script):
        assert drawn == real


def test_the_table_sorts_both_ways(page: Browser) -> None:
    order = "return [...document.querySelectorAll('#runs tbody tr')].map((row) => Number(row.cells[2].dataset.value))"
    page.click("[data-sort='2']")
    assert page.run(order) == sorted(page.run(order))
    assert page.run("return document.querySelectorAll('#runs thead th')[2].getAttribute('aria-sort')") == "ascending"
    page.click("[data-sort='2']")
    assert page.run(order) == sorted(page.run(order), reverse=True)


def test_axis_curve_choices_and_zoom(page: Browser) -> None:
    lines = "return document.querySelectorAll('#overlay .trace').length"
    assert page.run(lines) == 4
    page.click("#choices li:first-child input")
    assert page.run(lines) == 3
    page.choose("#axis", "events")
    ends = "return window.memsim.comparison.end()"
    assert page.run(ends) == max(page.run("return window.memsim.comparison.cases.slice(1).map((one) => one.n - 1)"))
    page.choose("#curve", "reserved")
    page.click("#zoom-in")
    low, high = page.run("return window.memsim.comparison.view")
    assert high - low == pytest.approx(page.run(ends) / 2)
    page.click("#zoom-out")
    page.click("#reset")
    assert page.run("return window.memsim.comparison.view") is None
    page.click("#theme")
    assert page.run("return document.documentElement.dataset.theme") == "dark"


def test_labels_are_text(page: Browser) -> None:
    assert page.run("return document.querySelector('#choices li').innerText.trim()") == "none & <b>1"
    assert "none & <b>1" in page.run("return document.getElementById('runs').innerText")


def test_recordings_without_time_have_no_chart_against_time(browser: Browser, tmp_path: Path) -> None:
    from memsim.results.answers import Timeline
    from memsim.timeline.about import About

    tape = training(steps=2, layers=4)
    made = compare([Timeline(tape, allocate(tape), About(name="toy"))] * 2)
    made.write_html(tmp_path / "compare.html")
    browser.open(tmp_path / "compare.html")
    assert browser.run("return document.getElementById('failed').hidden")
    assert browser.run("return document.querySelector('[aria-labelledby=against-title]').hidden")
    assert browser.run("return [...document.querySelectorAll('#axis option')].map((o) => o.value)") == ["events"]
    assert browser.complaints() == []
