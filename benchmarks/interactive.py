"""From opening a report to using it, in headless Chromium: python benchmarks/interactive.py [events]

The 72B LoRA's report (bar: 2 s) and a replay of a million events (bar: 4 s): the page's size, when it is drawn and
answers, and how long a zoom takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import memsim

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser  # noqa: E402


def main(events: int) -> None:
    """Prints the figures: the least of three."""
    run = memsim.Run.load("qwen2.5-72b-lora", set=("device_memory_gib=200",))
    step = len(memsim.simulate(run).tape) // 3
    long = memsim.Run.load("qwen2.5-72b-lora", set=(f"steps={events // step + 1}", "device_memory_gib=200"))
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, timeline in (
                ("72B LoRA, three steps", memsim.simulate(run)),
                ("many steps", memsim.simulate(long)),
            ):
                page = Path(folder) / "report.html"
                begin = time.perf_counter()
                timeline.write_html(page)
                wrote = time.perf_counter() - begin
                opened, zoomed = zip(*(measured(browser, page) for _ in range(3)), strict=True)
                about = (
                    f"{timeline.whole.processed:,} events, {page.stat().st_size / 1e6:.2f} MB, written in {wrote:.1f} s"
                )
                print(f"{name}: {about}; usable after {min(opened):.2f} s, a zoom {min(zoomed):.2f} s")
    finally:
        browser.quit()


def measured(browser: Browser, page: Path) -> tuple[float, float]:
    """Seconds until the page answers, from the start of its navigation; and of a zoom, drawn."""
    begin = time.perf_counter()
    browser.open(page)
    opened = time.perf_counter() - begin
    begin = time.perf_counter()
    browser.driver.execute_async_script(
        "const done = arguments[0]; window.memsim.charts.zoom(0.5).then(() => requestAnimationFrame(() => done()));"
    )
    return opened, time.perf_counter() - begin


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
