"""The page as a file: complete, safe to share, written whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from made import Writer, training

from memsim.allocator import allocate
from memsim.errors import InputError
from memsim.report.figures import COLOURS, STACK
from memsim.report.hints import hints
from memsim.report.page import plotly, report_html, write_html
from memsim.results.answers import Timeline
from memsim.tape import Category, Tape
from memsim.timeline.about import About
from memsim.timeline.names import UNSPLIT
from memsim.traces import recorder

GIB = 2**30


def timeline(about: About | None = None, memory: int = 80 * GIB) -> Timeline:
    tape = training()
    return Timeline(tape, allocate(tape, device_memory=memory), about or About())


def own_markup(html: str) -> str:
    """The page without the plotly.js and data that it carries compressed."""
    return re.sub(r'<script type="text/plain".*?</script>', "", html, flags=re.DOTALL)


def test_the_page_asks_the_network_for_nothing() -> None:
    html = own_markup(report_html(timeline()))
    assert not re.findall(r"https?://|//cdn|@import|url\(", html)
    assert [link for link in re.findall(r'(?:src|href)="([^"]*)"', html) if not link.startswith(("#", "data:"))] == []
    assert "default-src 'none'" in html


def test_what_a_run_says_is_escaped() -> None:
    nasty = '</script><script>alert("x")</script>&'
    about = About(
        name=nasty,
        facts=(("model", nasty),),
        yaml=nasty,
        command=nasty,
        device=nasty,
        device_memory=GIB,
        devices=((nasty, GIB),),
    )
    write = Writer()
    write.enter("0/forward", nasty, 0)
    write.free(write.alloc(100))
    tape = write.tape()
    html = report_html(Timeline(tape, allocate(tape), about))
    assert nasty not in html
    assert "<script>alert" not in html
    meta = re.search(r'id="meta">(.*?)</script>', html, flags=re.DOTALL)
    assert meta and json.loads(meta[1])["operators"] == [nasty]


@pytest.mark.parametrize("memory", [80 * GIB, 60 << 20], ids=["fits", "out of memory"])
def test_every_identifier_is_there_once(memory: int) -> None:
    html = own_markup(report_html(timeline(About(device_memory=memory), memory)))
    found = re.findall(r'\bid="([^"]+)"', html)
    assert len(found) == len(set(found))
    scripts = html[html.rindex("<script>") :]
    wanted = set(re.findall(r'getElementById\("([^"]+)"\)', scripts)) | set(re.findall(r'\bon\("([a-z-]+)", ', scripts))
    assert wanted - set(found) <= {"data", "plotly"}


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(timeline(), path)
    assert path.read_text().rstrip().endswith("</html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    folder = tmp_path / "folder.html"
    folder.mkdir()
    for bad in (tmp_path / "no" / "report.html", folder):
        with pytest.raises(InputError, match=re.escape(str(bad))):
            write_html(timeline(), bad)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.html", "report.html"]


def test_a_timeline_without_events_is_refused(tmp_path: Path) -> None:
    tape = Writer().tape()
    with pytest.raises(InputError, match="has no event"):
        write_html(Timeline(tape, allocate(tape)), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_first_allocation_that_fails_has_a_page() -> None:
    write = Writer()
    write.alloc(GIB)
    tape = write.tape()
    assert "Out of memory in load" in report_html(Timeline(tape, allocate(tape, device_memory=2 << 20)))


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    assert timeline()._repr_html_().startswith("<iframe srcdoc=")


def test_the_72b_page_is_small(golden: Path) -> None:
    tape = recorder.to_tape(recorder.load(golden / "qwen2.5-72b-lora16-ckpt.npz"))
    assert len(report_html(Timeline(tape, allocate(tape, device_memory=320 * GIB)))) < 2_000_000


def test_the_plotting_library_is_the_published_file() -> None:
    published = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
    assert hashlib.sha256(gzip.decompress(base64.b64decode(plotly()))).hexdigest() == published


def test_every_category_has_its_colour_and_place() -> None:
    assert set(STACK) == set(Category)
    for colours in COLOURS.values():
        assert set(colours) == {*Category, UNSPLIT}
        assert len(set(colours.values())) == len(colours)


def test_the_hints_follow_from_the_numbers() -> None:
    found = timeline()
    tokens, phases, first_step = hints(found)
    peak = found.at_peak()
    fixed = sum(
        peak.by_category.get(kind, 0) for kind in (Category.WEIGHTS, Category.GRADIENTS, Category.OPTIMIZER_STATE)
    )
    assert f"({100 * fixed / peak.allocated:.0f} %)" in tokens
    assert "lies in backward" in phases and "then forward" in phases
    assert "Step 1 needs" in first_step


def test_the_cost_of_fragmentation_adds_up_to_what_is_reserved() -> None:
    write = Writer()
    held = [write.alloc(12 << 20) for _ in range(3)]
    write.free(held[1])
    write.alloc(15 << 20)
    found = Timeline(write.tape(), allocate(write.tape()))
    bounds = found.bounds
    assert bounds is not None and bounds.packing is not None
    assert (bounds.live, bounds.packing, bounds.reserved) == (39 << 20, 39 << 20, 52 << 20)
    section = own_markup(report_html(found)).split('<h2 id="cost-title">')[1].split("</section>")[0]
    assert re.findall(r'number">([^<]*)<', section) == ["39.0 MiB", "0 bytes", "13.0 MiB"]


def out_of_memory(tape: Tape, memory: int) -> str:
    """The first hint of a Tape that does not fit."""
    short = Timeline(tape, allocate(tape, device_memory=memory))
    assert short.out_of_memory
    return hints(short)[0]


def test_too_much_for_any_allocator_is_told_from_fragmentation() -> None:
    write = Writer()
    held = [write.alloc(12 << 20) for _ in range(4)]
    write.free(held[0])
    write.free(held[2])
    write.alloc(30 << 20)
    assert "no allocator setting" in out_of_memory(write.tape(), 50 << 20)
    assert "not in one piece" in out_of_memory(pieces(), 60 << 20)


def pieces() -> Tape:
    """Two 20 MiB segments, each with a live block of 8 MiB: 24 MiB are free in them, and no piece of
    them holds 21 MiB.
    """
    write = Writer()
    blocks = [write.alloc(8 << 20) for _ in range(4)]
    write.free(blocks[0])
    write.free(blocks[2])
    write.alloc(21 << 20)
    return write.tape()
