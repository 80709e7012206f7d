"""axe-core finds nothing to complain of in any page, light or dark, wide or narrow."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from browser import Browser, start

import memsim
from memsim.report.graph.graph_page import write_graph_html
from memsim.run.job import Run
from memsim.simulation.build import model_of

pytestmark = pytest.mark.browser
RUN = {
    "model": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 1000,
    },
    "batch": {"sequence": 64},
    "device": "a100-80gb",
    "steps": 2,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = start()
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [Run(**RUN, checkpointing=kind) for kind in ("none", "full")]
    memsim.simulate(runs[0]).write_html(folder / "report.html")
    memsim.compare(runs, labels=["none", "full"], command="memsim compare x -o c.html").write_html(
        folder / "compare.html"
    )
    write_graph_html(model_of(runs[0]), folder / "graph.html")
    return {name: folder / f"{name}.html" for name in ("report", "compare", "graph")}


@pytest.mark.parametrize("name", ["report", "compare", "graph"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_has_no_complaint(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    script = files("axe_core_python") / "axe.min.js"
    browser.look(width=width, dark=dark)
    browser.open(pages[name])
    browser.run(script.read_text(encoding="utf-8"))
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then((r) => done(r.violations));"
    )
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found] == []
