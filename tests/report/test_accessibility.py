"""axe-core finds nothing to complain of in any page, light or dark, wide or narrow."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from browser import Browser, start

import memsim
from memsim.report.graph.graph_page import write_graph_html
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.traces.load import load_traces
from memsim.traces.trace import Trace

pytestmark = pytest.mark.browser
NAMES = ("report", "compare", "graph", "replay", "replays")
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
    traces = recorded(folder / "trace.pickle")
    memsim.replay(traces[1]).write_html(folder / "replay.html")
    memsim.compare([memsim.replay(trace) for trace in traces]).write_html(folder / "replays.html")
    return {name: folder / f"{name}.html" for name in NAMES}


def recorded(path: Path) -> tuple[Trace, ...]:
    """The traces of a snapshot of two devices, with stacks deep enough to scroll."""
    frames = [{"filename": f"/me/module_{at}.py", "line": at, "name": "forward"} for at in range(60)]
    row = {"action": "alloc", "size": 1 << 20, "stream": 0, "frames": frames}
    devices = [[row | {"addr": at << 22} for at in range(1, count)] for count in (4, 40)]
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": devices, "allocator_settings": {}}))
    return load_traces(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_has_no_complaint(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    script = files("axe_core_python") / "axe.min.js"
    browser.look(width=width, dark=dark)
    browser.open(pages[name])
    browser.run("for (const more of document.querySelectorAll('details')) more.open = true")
    browser.run(script.read_text(encoding="utf-8"))
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then((r) => done(r.violations));"
    )
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found] == []
