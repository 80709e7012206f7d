"""The page of a replay in a real browser: names of code, what was held before, spikes, and clicks on addresses."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, start
from made import Writer, training

import memsim
from memsim.allocator import allocate
from memsim.report.figures import figures
from memsim.report.hints import hints
from memsim.report.page import report_html
from memsim.results.answers import Timeline
from memsim.tape import Category
from memsim.timeline.about import About
from memsim.traces.load import load_trace

pytestmark = pytest.mark.browser
MIB, GIB = 2**20, 2**30
FRAMES = [
    {"filename": "/venv/lib/python3.11/site-packages/torch/nn/functional.py", "line": 5, "name": "linear"},
    {"filename": "/me/<b>train.py", "line": 12, "name": "forward"},
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = start()
    yield found
    found.quit()


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    """A recording that begins with 30 MiB of blocks held in 60 MiB of segments, and frees some of them."""
    segments, rows = [], []
    for at in range(3):
        base = (at + 1) << 30
        block = {"address": base, "size": 10 * MIB, "requested_size": 10 * MIB, "state": "active_allocated"}
        gap = {"address": base + 10 * MIB, "size": 10 * MIB, "requested_size": 0, "state": "inactive"}
        segment = {
            "address": base,
            "total_size": 20 * MIB,
            "stream": 0,
            "segment_type": "large",
            "is_expandable": False,
        }
        segments.append(segment | {"blocks": [block, gap]})
    for _ in range(40):
        row: dict[str, Any] = {"addr": (1 << 30) + 10 * MIB, "size": 2 * MIB, "stream": 0, "frames": FRAMES}
        rows += [{"action": "alloc", **row}, {"action": "free_requested", **row}, {"action": "free_completed", **row}]
    path = tmp_path_factory.mktemp("trace") / "middle.pickle"
    path.write_bytes(pickle.dumps({"segments": segments, "device_traces": [rows], "allocator_settings": {}}))
    return memsim.replay(load_trace(path))


@pytest.fixture
def page(browser: Browser, middle: Timeline, tmp_path: Path) -> Iterator[Browser]:
    middle.write_html(tmp_path / "report.html")
    browser.look()
    browser.open(tmp_path / "report.html")
    yield browser
    assert browser.complaints() == [] and browser.run("return document.getElementById('failed').hidden")


def text(browser: Browser, name: str) -> str:
    found: str = browser.run("return document.getElementById(arguments[0]).textContent", name)
    return found


def test_what_rebuilds_the_first_state_is_not_shown(page: Browser, middle: Timeline) -> None:
    first, n = middle.about.first_event, len(middle.tape)
    assert first > 0 and middle.peak_allocated == 32 * MIB and middle.whole.allocated[:first].max() > 32 * MIB
    assert dict(middle.about.facts)["held at its start"] == "30.0 MiB in 3 blocks, rebuilt from its end"
    assert page.run("return window.memsim.charts.whole.layout.xaxis.range") == [0, n - 1 - first]
    shown = "return Math.max(...document.getElementById('overview').data.find((t) => t.name === 'allocated').y)"
    assert page.run(shown) == 32  # MiB: the axis has the unit of what it shows
    assert page.run("return document.getElementById('overview').layout.yaxis.title.text") == "MiB"
    assert text(page, "moment-place").startswith(f"Event 0 of {n - first}: ")
    assert not any("before" in hint for hint in hints(middle))
    page.run("const e = document.getElementById('moment-event'); e.value = -5; e.dispatchEvent(new Event('change'))")
    page.settle()
    assert page.run("return window.memsim.panel.moment.event") == first


def test_a_request_is_named_by_the_line_that_made_it(page: Browser) -> None:
    assert text(page, "moment-place").endswith(": <b>train.py:12 forward; it allocates 2.0 MiB.")
    assert text(page, "moment-stack-text").splitlines() == [
        "/venv/lib/python3.11/site-packages/torch/nn/functional.py:5 linear",
        "/me/<b>train.py:12 forward",
    ]
    rows = page.run(
        "return [...document.querySelectorAll('#moment-largest tr th')].map((e) => [e.textContent, e.title])"
    )
    assert rows[0] == ["before the recording", ""]
    assert rows[1][0] == "<b>train.py:12 forward" and rows[1][1].endswith("/me/<b>train.py:12 forward")
    assert "middle.pickle" in page.run("return document.querySelector('.facts').textContent")
    assert "memsim replay" in page.run("return document.getElementById('command').textContent")


def test_a_click_on_an_address_goes_to_the_moment_clicked(page: Browser, middle: Timeline) -> None:
    from selenium.webdriver import ActionChains

    page.click("#map-time-all")
    canvas = page.driver.find_element("css selector", "#map-time")
    page.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    ActionChains(page.driver).move_to_element_with_offset(canvas, 150, -140).click().perform()
    first = middle.about.first_event
    page.wait(f"return window.memsim.panel.moment.event !== {middle.peak_event()}")
    frame = page.run("const o = window.memsim.over; return {...o.frame, width: o.canvas.clientWidth}")
    at = (frame["width"] / 2 + 150 - frame["left"]) / frame["room"] * frame["to"]
    assert page.run("return window.memsim.panel.moment.event") - first == pytest.approx(at, abs=1.5)
    assert page.run("return window.memsim.map.event") == page.run("return window.memsim.panel.moment.event")


def test_a_spike_keeps_a_visible_width(browser: Browser, tmp_path: Path) -> None:
    write = Writer()
    write.enter("0/forward")
    kept = [write.alloc(MIB, Category.WEIGHTS) for _ in range(8)]
    for at in range(20_000):
        write.free(write.alloc(4096 if at != 7_000 else 64 * MIB, Category.SCRATCH))
    for storage in kept:
        write.free(storage)
    tape = write.tape()
    Timeline(tape, allocate(tape)).write_html(tmp_path / "report.html")
    browser.look()
    browser.open(tmp_path / "report.html")
    script = """const div = document.getElementById(arguments[0]);
    const {x, y} = div.data.find((t) => t.name === 'allocated');
    const top = y.indexOf(Math.max(...y)), end = y.findIndex((value, at) => at > top && value < 0.9 * y[top]);
    const pixels = div.querySelector('.nsewdrag').getBoundingClientRect().width, all = div.layout.xaxis.range;
    const width = (x[end] - x[top]) / (all[1] - all[0]) * pixels;
    return [y[top], width, x.every((value, at) => !at || value >= x[at - 1])]"""
    for name in ("overview", "closeup"):
        height, width, ordered = browser.run(script, name)
        assert height == pytest.approx(72) and 2.5 <= width <= 4 and ordered


def test_a_small_run_on_a_large_device_keeps_its_scale(browser: Browser, tmp_path: Path) -> None:
    tape = training()
    about = About(device="Toy-80GB", device_memory=80 * GIB)
    Timeline(tape, allocate(tape, device_memory=80 * GIB), about).write_html(tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    words = "return [...document.querySelectorAll('#overview .annotation-text')].map((e) => e.textContent)"
    assert "Toy-80GB 80 GiB: far above" in browser.run(words)
    low, high = browser.run("return document.getElementById('overview').layout.yaxis.range")
    peak = int(allocate(tape).reserved.max()) / MIB
    assert low == 0 and peak < high < 1.2 * peak


def test_unused_memory_says_its_moment_and_layers_say_whose_they_are() -> None:
    tape = training()
    found = Timeline(tape, allocate(tape))
    spare = found.fragmentation("reserved")
    allocated = f"{spare.allocated / MIB:.1f} MiB is allocated then"
    assert f"when reserved peaks (event {int(np.argmax(found.answer.reserved)):,}, step " in report_html(found)
    assert allocated in report_html(found)
    for towers, title in (
        ("", "layer"),
        ("encoder 0 to 5, decoder 6 to 11", "layer (encoder 0 to 5, decoder 6 to 11)"),
    ):
        assert figures((), towers)["light"]["layers"]["layout"]["xaxis"]["title"]["text"] == title
