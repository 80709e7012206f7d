"""Photographs of the pages, for the README and for looking at: python benchmarks/screenshots.py [FOLDER]

Without FOLDER only docs/report.png and docs/compare.png are made: the top of the 72B report, and of a comparison.
With it, every page in full: light, dark and on a phone.
Needs Chromium and chromedriver, and the extra `test`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import memsim

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser  # noqa: E402

# Does not fit; fits; runs out of memory late.
PAGES = {
    "72b-lora": ("qwen2.5-72b-lora", ()),
    "7b-lora": ("qwen2.5-7b-lora", ()),
    "out-of-memory": ("qwen2.5-0.5b-full", ("device_memory_gib=5.9", "batch.sequence=1024")),
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
}
STRATEGIES = ("none", "full", "selective", "sqrt", "offload")
TOP = 1540  # CSS pixels of the page's top that tell the story


def main() -> None:
    """Makes the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name, (run, changes) in PAGES.items():
                page = Path(scratch) / f"{name}.html"
                memsim.simulate(memsim.Run.load(run, set=changes)).write_html(page)
                if name == "72b-lora":
                    browser.look(1200)
                    browser.open(page)
                    browser.photograph(ROOT / "docs" / "report.png", TOP)
                    compared = Path(scratch) / "compare.html"
                    runs = [
                        memsim.Run.load("qwen2.5-7b-lora", set=(f"checkpointing={strategy}",))
                        for strategy in STRATEGIES
                    ]
                    memsim.compare(runs, STRATEGIES).write_html(compared)
                    browser.open(compared)
                    browser.photograph(ROOT / "docs" / "compare.png", TOP)
                for look, settings in LOOKS.items() if folder else ():
                    browser.look(**settings)
                    browser.open(page)
                    folder.mkdir(parents=True, exist_ok=True)
                    browser.photograph(folder / f"{name}-{look}.png")
                    print(folder / f"{name}-{look}.png", *browser.complaints())
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
