"""The page of `memsim graph`."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.report.graph_page import write_graph_html
from memsim.run import Run
from memsim.simulation import model_of


def test_names_every_operator_and_what_layers_keep(tmp_path: Path) -> None:
    page = tmp_path / "graph.html"
    write_graph_html(model_of(Run.load("qwen2.5-72b-lora")), page)
    text = page.read_text()
    assert "80 such layers keep" in text
    for name in ("self_attn.q_proj.lora_A.linear", "self_attn.flash_attention", "mlp.down_proj.linear", "log_softmax"):
        assert name in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_graph_html(model_of(Run.load("llama3.2-1b-full")), tmp_path / "no" / "graph.html")
