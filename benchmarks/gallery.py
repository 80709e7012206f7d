"""The examples' pages, and an index of them: python benchmarks/gallery.py FOLDER

Every file of examples/ is simulated to a report, and every comparison of COMPARISONS to a page, as their commands
would.
"""

from __future__ import annotations

import sys
import time
from html import escape
from pathlib import Path

import memsim
from memsim import catalog
from memsim.cli.entry import main as command
from memsim.report.page import render, write

COMPARISONS = {
    "72b-checkpointing": (
        "qwen2.5-72b-lora",
        ("checkpointing=none,full", "method.kind=lora,qlora"),
        "What checkpointing and quantization save on a 72B model",
    ),
    "7b-batch": (
        "qwen2.5-7b-lora",
        ("checkpointing=none,full", "batch.size=1,2,4"),
        "Batch against checkpointing on a card of 24 GB",
    ),
}


def main(folder: Path) -> None:
    """Writes the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in catalog.examples().items():
        begin = time.perf_counter()
        timeline = memsim.simulate(memsim.Run.load(name))
        timeline.write_html(folder / f"{name}.html")
        question = path.read_text().partition("\n")[0].lstrip("# ")
        rows.append((name, question, timeline.headline(), f"memsim simulate {name} -o report.html"))
        print(f"{name}: {time.perf_counter() - begin:.2f} s")
    for name, (run, vary, question) in COMPARISONS.items():
        arguments = [
            "compare",
            run,
            *(part for text in vary for part in ("--vary", text)),
            "-o",
            str(folder / f"{name}.html"),
        ]
        command(arguments)
        shown = " ".join(["memsim compare", run, *(f"--vary {text}" for text in vary), "-o compare.html"])
        rows.append((name, question, "", shown))
    items = "".join(
        f'<section aria-labelledby="{escape(name)}"><h2 id="{escape(name)}">'
        f'<a href="{escape(name)}.html">{escape(question)}</a></h2>'
        f'<p class="sub">{escape(answer)}</p><pre>{escape(shown)}</pre></section>'
        for name, question, answer, shown in rows
    )
    main_html = (
        '<h1>Questions that memsim answers</h1><p class="lead">Each page is one file, and one command makes it.'
        f"</p>{items}"
    )
    page = render(
        kind="gallery",
        title="memsim gallery",
        main=main_html,
        footer="",
        script=("page.js",),
        start="plain()",
        data={},
        meta={},
    )
    write(page, folder / "index.html")
    print(folder / "index.html")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
