"""The report in a real browser: it draws, stays silent, asks for nothing, and its controls do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, start
from made import training

from memsim.allocator import allocate
from memsim.report.figures import slug
from memsim.results.answers import Timeline
from memsim.timeline.about import About

pytestmark = pytest.mark.browser
MIB = 2**20
TAPE = training(steps=3, layers=6, accumulation=2)
ABOUT = About(
    name="toy",
    facts=(("model", "toy"), ("method", "full")),
    yaml="model: toy\n",
    command="memsim simulate toy -o report.html",
    device="Toy-128MB",
    device_memory=256 * MIB,
    parameters=1000,
    trainable_parameters=10,
    devices=(("Toy-128MB", 256 * MIB), ("Toy-1GB", 2**30)),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = start()
    yield found
    found.quit()


@pytest.fixture(scope="module")
def fits() -> Timeline:
    return Timeline(TAPE, allocate(TAPE, device_memory=256 * MIB), ABOUT)


@pytest.fixture(scope="module")
def fails(fits: Timeline) -> Timeline:
    short = allocate(TAPE, device_memory=fits.peak_allocated - 4 * MIB)
    assert short.out_of_memory
    return Timeline(TAPE, short, ABOUT)


@pytest.fixture
def report(browser: Browser, fits: Timeline, tmp_path: Path) -> Browser:
    fits.write_html(tmp_path / "report.html")
    browser.look()
    browser.open(tmp_path / "report.html")
    return browser


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """After every test: no console message, no request but for the page itself, no failure shown."""
    yield
    assert browser.run("return document.getElementById('failed').hidden"), browser.run(
        "return document.getElementById('failed').textContent"
    )
    assert browser.complaints() == []
    assert [
        url for url in browser.requests() if not url.startswith("file:///") or not url.endswith("report.html")
    ] == []


def text(browser: Browser, name: str) -> str:
    return str(browser.run("return document.getElementById(arguments[0]).innerText", name))


def view(browser: Browser) -> tuple[int, int]:
    found = browser.run("return window.memsim.charts.view")
    return found["lo"], found["hi"]


def test_the_page_rebuilds_the_timeline_exactly(report: Browser, fits: Timeline) -> None:
    script = """const t = window.memsim.timeline;
    return [Array.from(t.allocated), Array.from(t.reserved),
        Object.fromEntries(t.keys.map((k) => [k, Array.from(t.curves[k])]))]"""
    allocated, reserved, curves = report.run(script)
    assert allocated == fits.answer.allocated.tolist()
    assert reserved == fits.answer.reserved.tolist()
    assert curves == {slug(kind): curve.tolist() for kind, curve in fits.curves.items()}


@pytest.mark.parametrize("event", [0, 17, 50, 101])
def test_a_moment_is_what_python_says(report: Browser, fits: Timeline, event: int) -> None:
    script = """const t = window.memsim.timeline, m = t.moment(arguments[0]),
        f = t.fragmentation(t.blockMap(arguments[0]), arguments[0]);
    return {categories: m.byCategory, layers: Object.fromEntries(m.byLayer),
        largest: m.largest.map((g) => g.bytes * g.count), f}"""
    page, moment, parts = report.run(script, event), fits.alive_at(event), fits.fragmentation_at(event)
    assert {key: count for key, count in page["categories"].items() if count} == {
        slug(kind): count for kind, count in moment.by_category.items()
    }
    assert page["layers"] == {
        str(layer): {slug(kind): count for kind, count in kinds.items()} for layer, kinds in moment.by_layer.items()
    }
    assert page["largest"][: len(moment.largest)] == [alive.total for alive in moment.largest]
    wanted = (
        parts.cached_segments,
        parts.free_in_used_segments,
        parts.largest_free,
        parts.segments,
        parts.free_segments,
        parts.free_blocks,
    )
    assert (
        tuple(page["f"][key] for key in ("cached", "holes", "largest", "segments", "cachedSegments", "freeBlocks"))
        == wanted
    )


def test_sampling_keeps_the_extremes(report: Browser) -> None:
    script = """const t = window.memsim.timeline, e = Array.from(t.sample(0, t.n, 5)),
        max = (c) => Math.max(...e.map((i) => c[i]));
    const low = Math.min(...e.map((i) => t.allocated[i]));
    return [e.length, max(t.allocated), max(t.reserved),
        Math.max(...t.allocated), Math.max(...t.reserved), low, Math.min(...t.allocated)]"""
    count, top, held, all_top, all_held, low, all_low = report.run(script)
    assert count <= 4 * 5 + 1
    assert (top, held, low) == (all_top, all_held, all_low)


def test_the_page_opens_at_the_peak(report: Browser, fits: Timeline) -> None:
    assert text(report, "moment-title") == "What is alive at the peak of allocated"
    assert f"Event {fits.peak_event()} of" in text(report, "moment-place").replace(",", "")
    spans = [
        span
        for span in fits.spans
        if span.step == next(s.step for s in fits.spans if s.start <= fits.peak_event() < s.stop)
    ]
    assert view(report) == (spans[0].start, spans[-1].stop)
    assert report.run("return document.querySelectorAll('#overview .trace, #closeup .trace').length") > 10


def test_the_buttons_move_the_close_up(report: Browser) -> None:
    lo, hi = view(report)
    report.click("#zoom-in")
    inner = view(report)
    assert lo <= inner[0] and inner[1] <= hi and inner[1] - inner[0] < hi - lo
    report.click("#pan-left")
    assert view(report)[0] < inner[0]
    report.click("#pan-right")
    report.click("#zoom-out")
    assert view(report)[1] - view(report)[0] > inner[1] - inner[0]
    report.click("#reset")
    assert view(report) == (lo, hi)


def test_the_menus_choose_step_phase_and_layer(report: Browser, fits: Timeline) -> None:
    report.choose("#go-step", "0")
    report.choose("#go-phase", "optimizer")
    span = next(span for span in fits.spans if span.phase == "0/optimizer")
    low, high = view(report)
    assert low <= span.start and span.stop <= high and high - low <= max(20, span.stop - span.start + 1)
    report.choose("#go-phase", "backward")
    report.choose("#go-layer", "2")
    lo, hi = view(report)
    inside = fits.tape.layer[lo:hi]
    assert (inside == 2).any()
    report.choose("#go-layer", "")
    report.choose("#go-phase", "")
    report.choose("#go-step", "")
    assert view(report) == (0, len(fits.tape))


def test_leaving_out_what_is_held_moves_the_axis(report: Browser) -> None:
    top = "return window.memsim.charts.close.layout.yaxis.range[1]"
    before, checked = report.run(top), report.run("return document.getElementById('leave-out').checked")
    report.click("#leave-out")
    assert report.run("return document.getElementById('leave-out').checked") != checked
    assert report.run(top) != before
    assert ("Left out" in text(report, "closeup-note")) != checked


def test_stepping_through_events_changes_what_is_alive(report: Browser, fits: Timeline) -> None:
    peak = fits.peak_event()
    report.click("#moment-before")
    assert f"Event {peak - 1} of" in text(report, "moment-place").replace(",", "")
    report.click("#moment-after")
    report.click("#moment-after")
    assert text(report, "moment-title") == f"What is alive after event {peak + 1}"
    report.run("const e = document.getElementById('moment-event'); e.value = 3; e.dispatchEvent(new Event('change'))")
    report.wait("return document.getElementById('moment-title').textContent.endsWith('event 3')")
    assert view(report)[0] <= 3 < view(report)[1]
    report.click(f"[data-moment='{peak}']")
    assert text(report, "moment-title") == "What is alive at the peak of allocated"


def test_a_click_in_the_chart_chooses_the_moment(report: Browser, fits: Timeline) -> None:
    from selenium.webdriver import ActionChains

    report.run("document.getElementById('overview').scrollIntoView({block: 'center', behavior: 'instant'})")
    plot = report.driver.find_element("css selector", "#overview .nsewdrag")
    ActionChains(report.driver).move_to_element_with_offset(plot, -200, 40).pause(0.2).click().perform()
    report.wait(f"return window.memsim.panel.moment.event !== {fits.peak_event()}")
    event = report.run("return window.memsim.panel.moment.event")
    assert 0 <= event < len(fits.tape)
    assert report.run("return window.memsim.map.event") == event


def test_dragging_over_the_overview_chooses_what_the_close_up_shows(report: Browser, fits: Timeline) -> None:
    from selenium.webdriver import ActionChains

    before = view(report)
    report.run("document.getElementById('overview').scrollIntoView({block: 'center', behavior: 'instant'})")
    plot = report.driver.find_element("css selector", "#overview .nsewdrag")
    ActionChains(report.driver).move_to_element_with_offset(plot, -300, 30).click_and_hold().move_by_offset(
        120, 0
    ).move_by_offset(60, 0).release().perform()
    report.wait("return !window.memsim.charts.busy && window.memsim.charts.view !== window.memsim.charts.home")
    lo, hi = view(report)
    assert (lo, hi) != before and 0 < lo < hi < len(fits.tape) / 2
    assert report.run("return window.memsim.charts.whole.layout.xaxis.range") == [0, len(fits.tape) - 1]
    report.click("#reset")
    assert view(report) == before


def test_hovering_names_operator_layer_phase_and_bytes(report: Browser) -> None:
    from selenium.webdriver import ActionChains

    report.run("document.getElementById('closeup').scrollIntoView({block: 'center', behavior: 'instant'})")
    plot = report.driver.find_element("css selector", "#closeup .nsewdrag")
    ActionChains(report.driver).move_to_element_with_offset(plot, -60, 30).perform()
    report.wait("return document.querySelectorAll('#closeup .hoverlayer .hovertext').length > 0")
    label = report.run("return document.querySelector('#closeup .hoverlayer .hovertext').textContent")
    assert "event" in label and "step" in label and "MiB" in label and "allocated" in label


def test_the_address_map_filters_and_follows_the_keyboard(report: Browser) -> None:
    from selenium.webdriver import Keys

    shown = "return window.memsim.map.places.length"
    everything = report.run(shown)
    report.choose("#map-only", "holes")
    assert 0 < report.run(shown) <= everything
    report.choose("#map-only", "all")
    place = "return window.memsim.map.places.indexOf(window.memsim.map.picked)"
    canvas = report.driver.find_element("css selector", "#map")
    canvas.send_keys(*[Keys.ARROW_LEFT] * everything)
    assert report.run(place) == 0
    first = text(report, "segment-note")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert report.run(place) == 1
    assert first.startswith("Segment at 0x") and text(report, "segment-note") != first
    report.choose("#map-only", "cached")
    assert report.run("return window.memsim.map.places.every((place) => !place.segment.used)")
    report.choose("#map-only", "all")
    assert report.run(shown) == everything


def test_weights_can_be_left_out_of_the_layers(report: Browser) -> None:
    names = "return document.getElementById('layers').data.map((trace) => trace.name)"
    with_weights = "weights" in report.run(names)
    report.click("#without-weights")
    report.wait(
        "return document.getElementById('layers').data.some((trace) => trace.name === 'weights') !== "
        f"{str(with_weights).lower()}"
    )


def test_the_theme_can_be_changed_and_follows_the_system(browser: Browser, fits: Timeline, tmp_path: Path) -> None:
    fits.write_html(tmp_path / "report.html")
    browser.look(dark=True)
    browser.open(tmp_path / "report.html")
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(ground)
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    browser.click("#theme")
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    assert browser.run(ground) != dark
    browser.run("localStorage.clear()")


@pytest.mark.parametrize("state", ["fits", "fails"])
def test_a_phone_never_scrolls_sideways(
    browser: Browser, fits: Timeline, fails: Timeline, tmp_path: Path, state: str
) -> None:
    (fits if state == "fits" else fails).write_html(tmp_path / "report.html")
    browser.look(390, 844, phone=True)
    browser.open(tmp_path / "report.html")
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]


def test_out_of_memory_is_marked(browser: Browser, fails: Timeline, tmp_path: Path) -> None:
    fails.write_html(tmp_path / "report.html")
    browser.look()
    browser.open(tmp_path / "report.html")
    words = browser.run(
        "return [...document.querySelectorAll('#closeup .annotation-text')].map((e) => e.textContent).join(' ')"
    )
    assert "out of memory" in words and "missing" in words
    assert browser.run("return document.querySelector('h1').textContent").startswith("Out of memory")
    browser.click(f"[data-moment='{fails.answer.out_of_memory.event}']")  # type: ignore[union-attr]
    assert text(browser, "moment-title") == "What is alive when memory runs out"


def test_everything_that_can_be_used_has_a_name(report: Browser) -> None:
    script = """return [...document.querySelectorAll('button, select, input, canvas, [role=img], [role=region]')]
    .filter((e) => e.getAttribute('aria-hidden') !== 'true')
    .filter((e) => !(e.getAttribute('aria-label')
        || e.textContent.trim() || e.closest('label')?.textContent.trim())).map((e) => e.outerHTML)"""
    assert report.run(script) == []


def test_printing_uses_the_light_theme(report: Browser) -> None:
    report.run("window.memsim.page.setTheme('dark', false); window.dispatchEvent(new Event('beforeprint'))")
    assert report.run("return document.documentElement.dataset.theme") == "light"
    report.run("window.dispatchEvent(new Event('afterprint'))")
    assert report.run("return document.documentElement.dataset.theme") == "dark"
    report.settle()


def test_the_axis_can_be_time(browser: Browser, tmp_path: Path) -> None:
    import memsim
    from memsim.run.job import Run

    model = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 1000,
    }
    timeline = memsim.simulate(Run(model=model, checkpointing="full", steps=2))
    timeline.write_html(tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert timeline.time is not None and timeline.step_time is not None
    assert browser.run("return window.memsim.timeline.time[window.memsim.timeline.n - 1]") == pytest.approx(
        float(timeline.time[-1]), rel=1e-4
    )
    lo, hi = view(browser)
    browser.choose("#axis", "time")
    ends = browser.run(
        "return [...document.querySelectorAll('#overview, #closeup')].map((div) => div.layout.xaxis.range)"
    )
    assert ends[0] == pytest.approx([0, float(timeline.time[-1])], rel=1e-4)
    assert ends[1] == pytest.approx([float(timeline.time[lo]), float(timeline.time[hi - 1])], rel=1e-4)
    browser.click("#zoom-in")
    inner = view(browser)
    assert inner[0] >= lo and inner[1] <= hi and inner[1] - inner[0] < hi - lo
    browser.click("#zoom-out")
    browser.click("#pan-left")
    browser.choose("#go-phase", "optimizer")
    browser.choose("#axis", "events")


def test_a_recording_without_times_offers_no_time(report: Browser) -> None:
    assert not report.run("return document.getElementById('axis-choice').checkVisibility()")


def test_addresses_over_time_show_every_block_of_the_part_shown(report: Browser, fits: Timeline) -> None:
    lo, hi = view(report)
    report.click("#map-time-all")
    drawn = set(report.run("return window.memsim.over.drawn.map((block) => block.storage)"))
    lives = fits.lifetimes
    assert len(drawn) == int(((lives.born < hi) & (lives.released > lo)).sum())
    total, reserved = report.run(
        "const o = window.memsim.over, r = o.ranges(...arguments); return [r.total, r.whole]", lo, hi
    )
    assert total == reserved == int(fits.answer.reserved[lo:hi].max())
    report.click("#map-time-all")
    changing = report.run("return window.memsim.over.ranges(...arguments).kept.every((range) => range.changes)", lo, hi)
    assert changing
    report.choose("#go-phase", "optimizer")
    assert "of addresses" in text(report, "map-time-sub") or "nothing changes" in text(report, "map-time-sub")
