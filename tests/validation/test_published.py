"""Published measurements: what is simulated agrees with real GPUs; what is not has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim import Run
from memsim.api import simulate
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.validation import published

SHIPPED = Path(__file__).parents[2] / "traces" / "published.jsonl"


def test_what_ships_is_what_was_collected(shared: Path) -> None:
    collected = (shared / "golden" / "published.jsonl").read_text().splitlines()
    assert set(SHIPPED.read_text().splitlines()) < set(collected)


def test_an_a100_is_met() -> None:
    found = published.with_simulations(published.load(SHIPPED), lambda data: simulate(Run.load(data)))
    errors = [abs(row.error) for row in found if row.simulated is not None and not row.differs]
    assert len(errors) == 16 and max(errors) < 0.01
    others = [row for row in found if row.simulated is not None and row.differs]
    assert {row.source for row in others} >= {"Lightning-AI/litgpt", "QwenLM/Qwen"}
    assert all(bool(row.reason) is (row.simulated is None) for row in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("{", "line 1: is not JSON"),
        ("{}", "line 1: id: missing"),
        ('[1]\n{"id": 1}', "line 1: id: missing"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError) as error:
        published.load(tmp_path / "p.jsonl")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_command_takes_a_folder_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path), "--published", str(tmp_path / "p.jsonl")]) == 2
    assert "takes a folder of recorded runs or --published FILE, not both" in capsys.readouterr().err
    row = dict.fromkeys(published.NEEDED, "x") | {"parallelism": "8 GPUs"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    assert main(["validate", "--published", str(tmp_path / "p.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["reason"] == "more than one GPU, or it does not say" and found["summary"]["simulated"] == 0
