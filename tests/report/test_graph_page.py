"""The page of `memsim graph`: what it says is what the graph and the simulation say, and it works in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, start

from memsim.api import simulate
from memsim.errors import InputError
from memsim.framework.model import Model
from memsim.report.graph.graph_facts import facts, flop_words, is_view, kept, kept_by_layers, of_all_layers
from memsim.report.graph.graph_layout import WIDTH, Drawing, draw
from memsim.report.graph.graph_page import graph_html, write_graph_html
from memsim.run.job import Run
from memsim.simulation.build import model_of
from memsim.tape import Category
from memsim.units import size

FULL, LORA = "llama3.2-1b-full", "qwen2.5-72b-lora"


@pytest.fixture(scope="module")
def full() -> Model:
    return model_of(Run.load(FULL))


@pytest.fixture(scope="module")
def lora() -> Model:
    return model_of(Run.load(LORA))


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["precision=fp32"],
        ["attention=eager"],
        ["method.kind=lora"],
        ["method.kind=lora", "method.dropout=0.1"],
    ],
)
def test_what_layers_keep_is_what_the_simulation_holds_when_backward_starts(changes: list[str]) -> None:
    run = Run.load(FULL, set=["batch.size=1", "batch.sequence=256", "device_memory_gib=80", "steps=1", *changes])
    model, timeline = model_of(run), simulate(run)
    span = next(span for span in timeline.spans if span.phase == "0/backward")
    held = timeline.alive_at(span.start - 1).by_layer
    layers = [held[i].get(Category.ACTIVATIONS, 0) for i in range(len(model.pattern))]
    assert layers[1:] == [kept(model.layer_graphs[0])] * (len(layers) - 1)
    assert of_all_layers(model) == sum(layers)


def test_the_column_of_what_is_added_sums_to_what_is_kept(full: Model, lora: Model) -> None:
    for graph in (*full.layer_graphs, full.outer, *lora.layer_graphs, lora.outer):
        rows = facts(graph)
        assert [row.op for row in rows] == graph.operators
        assert sum(row.adds for row in rows) == kept(graph)
        assert all(row.allocates == 0 for row in rows if row.view)
        assert all(row.adds <= row.keeps for row in rows)


def test_a_checkpoint_keeps_inputs_of_the_layers(lora: Model) -> None:
    call = next(op for op in lora.outer.operators if op.kind == "layers")
    assert {spec.storage for spec in call.inputs} >= kept_by_layers(lora) >= {call.inputs[0].storage}


@pytest.mark.parametrize("views", [False, True])
def test_lines_never_pass_behind_boxes(lora: Model, full: Model, views: bool) -> None:
    for graph in (*lora.layer_graphs, full.outer):
        picture = draw(graph, lambda op: 24 if is_view(op) else 42, views)
        drawn = [box.op for box in picture.boxes if box.op is not None]
        assert drawn == [op for op in graph.operators if views or not is_view(op)]
        assert [box.y for box in picture.boxes] == sorted(box.y for box in picture.boxes)
        assert not list(_crossings(picture))


def _crossings(picture: Drawing) -> Iterator[tuple[int, int]]:
    for number, line in enumerate(picture.lines):
        for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
            for at, box in enumerate(picture.boxes):
                within_x = max(x0, x1) > box.x and min(x0, x1) < box.x + WIDTH
                within_y = max(y0, y1) > box.y and min(y0, y1) < box.y + box.height
                if within_x and within_y:
                    yield number, at


def test_every_reader_is_joined_to_what_it_reads_over_hidden_views(full: Model) -> None:
    (graph,) = full.layer_graphs
    picture = draw(graph, lambda op: 42, False)
    names = [box.name for box in picture.boxes]
    joined = {(names[line.source], names[line.target], line.kept) for line in picture.lines}
    assert ("self_attn.v_proj.linear", "self_attn.flash_attention", True) in joined
    assert ("self_attn.flash_attention", "self_attn.o_proj.linear", True) in joined
    assert ("hidden_states", "residual", False) in joined
    assert ("cos", "self_attn.mul", True) in joined


def test_names_every_operator_and_what_layers_keep(tmp_path: Path, lora: Model) -> None:
    page = tmp_path / "graph.html"
    write_graph_html(model_of(Run.load(LORA)), page, "qwen2.5-72b")
    text = page.read_text(encoding="utf-8")
    for graph in (*lora.layer_graphs, lora.outer):
        for op in graph.operators:
            assert f'<th scope="row">{op.name}</th>' in text
    assert (
        "Checkpointed, a decoder layer of qwen2.5-72b keeps 16.0 MiB; run again for its backward, "
        f"{size(kept(lora.layer_graphs[0]))}"
    ) in text
    assert f"<b>1.25 GiB</b> instead of {size(of_all_layers(lora))}" in text
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", text)
    assert list(tmp_path.iterdir()) == [page]


def test_the_card_says_shapes_what_is_kept_and_what_dies(full: Model) -> None:
    found = re.search(r'id="meta">(.*?)</script>', graph_html(full))
    assert found is not None
    cards = json.loads(found[1])["layer-1"]
    card = dict(cards["5 input_layernorm.mul"])
    assert card["allocates"] == ["fp32 [4, 512, 2048] (strides 1048576, 2048, 1), 16.0 MiB"]
    assert card["keeps for backward"] == [
        "result of input_layernorm.rsqrt, 8.0 KiB",
        "result of input_layernorm.cast, 16.0 MiB",
    ]
    assert card["Python lets go of, backward keeps"] == card["keeps for backward"]
    assert dict(cards["2 input_layernorm.mean"])["frees after it"] == ["result of input_layernorm.square, 16.0 MiB"]
    assert dict(cards["8 self_attn.q_proj.linear"])["forward"] == ["17.2 GFLOP"]
    assert ("self_attn.q_proj.weight, 8.0 MiB (a parameter)") in dict(cards["8 self_attn.q_proj.linear"])[
        "keeps for backward"
    ]


def test_flops_are_words() -> None:
    assert [flop_words(n) for n in (0, 999, 1500, 2.54e11, 1.82e12)] == [
        "0 FLOP",
        "999 FLOP",
        "1.50 kFLOP",
        "254 GFLOP",
        "1.82 TFLOP",
    ]


def test_an_unwritable_folder_is_one_line(tmp_path: Path, full: Model) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_graph_html(full, tmp_path / "no" / "graph.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = start()
    yield found
    found.quit()


def test_the_page_is_silent_and_asks_for_nothing(browser: Browser, full: Model, tmp_path: Path) -> None:
    page = tmp_path / "graph.html"
    write_graph_html(full, page)
    browser.look()
    browser.open(page)
    assert browser.run("return document.getElementById('failed').hidden")
    shown = (
        "return [...document.querySelectorAll('.graph svg')].filter((e) => e.getBoundingClientRect().width).map((e) "
        "=> e.classList[0])"
    )
    assert set(browser.run(shown)) == {"without-views"}
    browser.run("document.querySelector('input.views').click()")
    assert set(browser.run(shown)) == {"with-views"}
    browser.run(
        "const e = document.querySelector('select.by'); e.value = 'parameters'; e.dispatchEvent(new Event('change'))"
    )
    assert set(browser.run("return [...document.querySelectorAll('.graph')].map((e) => e.dataset.by)")) == {
        "parameters"
    }
    assert browser.complaints() == []
    assert browser.requests() == [page.absolute().as_uri()]


def test_the_keyboard_goes_from_operator_to_operator(browser: Browser, full: Model, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    page = tmp_path / "graph.html"
    write_graph_html(full, page)
    browser.look()
    browser.open(page)
    browser.run("document.querySelector('.without-views .node').focus()")
    focused = "return document.activeElement.getAttribute('aria-label')"
    assert browser.run(focused) == "input hidden_states, 8.0 MiB"
    ActionChains(browser.driver).send_keys(Keys.END).perform()
    assert browser.run(focused).startswith("51 residual, add")
    assert "frees after it" in browser.run("return document.getElementById('card').textContent")
    assert browser.run("return document.querySelectorAll('.edge.near').length") == 2
    # one of each part
    assert browser.run("return document.querySelectorAll('.without-views .node[tabindex=\"0\"]').length") == 2
    ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
    assert browser.run("return document.getElementById('card').hidden")
    nameless = "return [...document.querySelectorAll('.node, select, input, [role=region], [role=group]')]"
    assert (
        browser.run(
            f"{nameless}.filter((e) => !(e.getAttribute('aria-label') || "
            "e.closest('label')?.textContent.trim())).length"
        )
        == 0
    )


def test_a_phone_never_scrolls_sideways(browser: Browser, full: Model, tmp_path: Path) -> None:
    page = tmp_path / "graph.html"
    write_graph_html(full, page)
    browser.look(390, 844, phone=True)
    browser.open(page)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
