"""Runs side by side: the front, the cheapest that fits, and what the command line makes of KEY=A,B."""

from __future__ import annotations

import csv
import json
from html import escape
from pathlib import Path

import pytest

import memsim
from memsim.cli import compare as compare_command
from memsim.cli.entry import main
from memsim.results.side_by_side import Comparison
from memsim.run.job import Run

TINY = """\
model: {
  model_type: llama, hidden_size: 256, intermediate_size: 512,
  num_hidden_layers: 6, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 50000,
}
batch: {size: 4, sequence: 256}
device_memory_gib: 1
steps: 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def found(tiny: Path) -> Comparison:
    runs = [
        Run.load(tiny, set=[f"checkpointing={kind}", f"optimizer={name}"])
        for kind in ("none", "full")
        for name in ("adamw", "sgd")
    ]
    return memsim.compare(runs, labels=["none adamw", "none sgd", "full adamw", "full sgd"])


def test_nothing_on_the_front_is_beaten(found: Comparison) -> None:
    on = {case.label for case in found.front}
    for case in found.cases:
        beaten = any(
            o.memory <= case.memory and o.pace <= case.pace and (o.memory, o.pace) != (case.memory, case.pace)
            for o in found.cases
        )
        assert (case.label in on) == (not beaten)
    assert on == {"none sgd", "full sgd"}


def test_the_cheapest_takes_the_least_time_of_those_that_fit(found: Comparison) -> None:
    assert found.cheapest is not None and found.cheapest.label == "none sgd"
    assert found.smallest is not None and found.smallest.label == "full sgd"
    first, second = found.verdict()
    assert first.startswith("“none sgd” is the fastest that fits 1 GiB of device memory: ")
    best = found.cheapest.timeline
    assert best.verdict == "tight"
    assert f" (tight: {(2**30 - best.peak_reserved) / 2**20:.1f} MiB to spare), about " in first
    assert second.startswith("“full sgd” needs least, ") and "more time" in second


def test_what_does_not_fit_is_said(tiny: Path) -> None:
    peaks = {
        kind: memsim.simulate(Run.load(tiny, set=[f"checkpointing={kind}"])).peak_reserved for kind in ("none", "full")
    }
    between = (peaks["none"] + peaks["full"]) / 2 / 2**30
    found = memsim.compare(
        [Run.load(tiny, set=[f"checkpointing={kind}", f"device_memory_gib={between}"]) for kind in ("none", "full")],
        labels=["none", "full"],
    )
    assert [case.fits for case in found.cases] == [False, True]
    assert found.cheapest is found.cases[1]
    assert any(line.startswith("“none” would be ") and line.endswith(" MiB too much.") for line in found.verdict())
    data, rows = found.to_json()["cases"], list(csv.DictReader(found.to_csv().splitlines()))
    assert [(case["fits"], case["verdict"]) for case in data] == [(False, "no"), (True, "tight")]
    assert [(row["fits"], row["verdict"]) for row in rows] == [("False", "no"), ("True", "tight")]
    nowhere = memsim.compare([Run.load(tiny, set=["device_memory_gib=0.1"])] * 2)
    assert nowhere.cheapest is None and nowhere.verdict()[0] == "None of the 2 fits."


def test_a_named_device_says_what_was_counted(tiny: Path) -> None:
    runs = [Run.load(tiny, set=[f"checkpointing={kind}", "device=rtx-4090"]) for kind in ("none", "full")]
    found = memsim.compare(runs, labels=["none", "full"])
    counted = "the 23.64 GiB that PyTorch sees, less 0.65 GiB of CUDA context"
    assert f" is the fastest that fits RTX 4090 ({counted}): " in found.verdict()[0]
    for case in found.to_json()["cases"]:
        assert (case["verdict"], case["device_memory_counted"]) == ("fits", counted)
        assert case["device_memory"] == (24207 - 666) * 2**20
    from memsim.report.compare_page import shared_facts

    assert ("device", f"RTX 4090: {counted}") in shared_facts(found)
    sheet = memsim.compare([Run.load(tiny, set=["device=rtx-4090", "device_memory_gib=24"])] * 2)
    assert " is the fastest that fits 24 GiB of device memory: " in sheet.verdict()[0]


def test_the_breakdown_adds_up_to_the_peak(found: Comparison) -> None:
    for case in found.cases:
        assert sum(case.breakdown.values()) == case.timeline.peak_allocated


def test_frame_csv_and_json_agree(found: Comparison) -> None:
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    data = found.to_json()
    assert [row["run"] for row in rows] == [case["label"] for case in data["cases"]]
    assert [int(row["peak_reserved"]) for row in rows] == [case["peak_reserved"] for case in data["cases"]]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert isinstance(found.to_frame(), pandas.DataFrame)
    assert found.to_frame()["peak_reserved"].tolist() == [case.memory for case in found.cases]


def test_the_command_varies_keys_in_all_combinations(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "c.html"
    assert (
        main(
            [
                "compare",
                str(tiny),
                "--vary",
                "checkpointing=none,full",
                "--vary",
                "batch.size=1,2",
                "--json",
                "-o",
                str(page),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert [case["label"] for case in data["cases"]] == [
        f"checkpointing {kind} · size {size}" for kind in ("none", "full") for size in (1, 2)
    ]
    assert page.read_text().startswith("<!doctype html>") and str(page) in err
    assert main(["compare", str(tiny), "--vary", "batch={size: 1, sequence: 64},{size: 2, sequence: 32}"]) == 0
    assert "{size: 1, sequence: 64}" in capsys.readouterr().out


def test_nothing_fits_is_an_answer_and_exit_code_1_where_it_must_fit(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(tiny), "--vary", "checkpointing=none,full"]
    assert main([*command, "--set", "device_memory_gib=0.1"]) == 0
    assert capsys.readouterr().out.startswith("None of the 2 fits.")
    assert main([*command, "--set", "device_memory_gib=0.1", "--must-fit"]) == 1
    assert main([*command, "--must-fit"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vary", "chekpointing=none,full"], "--vary: chekpointing: "),
        (["--vary", "checkpointing=none,ful"], "--vary: checkpointing: "),
        (["--vary", "checkpointing"], "--vary 'checkpointing': write KEY=A,B, such as checkpointing=none,full"),
        (["--vary", "checkpointing=full,full"], "--vary checkpointing: full is given twice"),
        (
            ["--vary", f"batch.size={','.join(map(str, range(1, 66)))}"],
            "--vary: 65 combinations are more than 64; --yes simulates them",
        ),
        ([], "compare: one run has nothing to be compared with; give two, or --vary KEY=A,B"),
        (
            ["--vary", "batch.size=1,2", "--json", "--csv"],
            "compare: --json and --csv both go to stdout; give one of them",
        ),
        (["--vary", "batch.size=1,2", "-o", "c.pdf"], "c.pdf: does not end in .html"),
    ],
)
def test_mistakes_are_one_line(
    tiny: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tiny), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"memsim: {words}") and err.count("\n") == 1


def test_names_keep_their_dots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("llama3.2-tiny.yaml", "llama3.1-tiny.yml"):
        (tmp_path / name).write_text(TINY)
    arguments = ["compare", str(tmp_path / "llama3.2-tiny.yaml"), str(tmp_path / "llama3.1-tiny.yml"), "--json"]
    assert main(arguments) == 0
    labels = [case["label"] for case in json.loads(capsys.readouterr().out)["cases"]]
    assert labels == ["llama3.2-tiny", "llama3.1-tiny"]
    assert [compare_command._name(name) for name in ("qwen2.5-7b-lora", "Qwen/Qwen2.5-7B", "a.b/c.json")] == [
        "qwen2.5-7b-lora",
        "Qwen2.5-7B",
        "c",
    ]


def test_runs_of_one_name_are_told_apart_by_what_differs(tiny: Path) -> None:
    runs = [Run.load(tiny, set=[f"batch.size={size}"]) for size in (1, 2, 2)]
    labels = [case.label for case in memsim.compare(runs).cases]
    assert labels == [
        "tiny · batch 1 × 256 tokens",
        "tiny · batch 2 × 256 tokens",
        "tiny · batch 2 × 256 tokens (2)",
    ]


def test_different_models_are_not_ranked(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text(TINY.replace("intermediate_size: 512", "intermediate_size: 1024"))
    wide = [Run.load(tmp_path / "wide.yaml", set=["device_memory_gib=2", f"optimizer={k}"]) for k in ("adamw", "sgd")]
    found = memsim.compare([Run.load(tiny, set=["device_memory_gib=2"]), *wide], ["a", "b", "c"])
    assert [[case.label for case in group] for group in found.groups] == [["a"], ["b", "c"]]
    assert found.cheapest is None and {case.label for case in found.front} == {"a", "c"}
    first, alone, group = found.verdict()
    assert first == "All 3 fit. Different models are not ranked against each other."
    assert alone.startswith("“a” fits 2 GiB: it needs ") and "fastest" not in alone
    assert group.startswith("Of llama on 2 GiB: “c” is the fastest that fits ")


def test_different_devices_are_not_ranked(tiny: Path) -> None:
    found = memsim.compare([Run.load(tiny, set=[f"device_memory_gib={size}"]) for size in (0.1, 2)], ["small", "large"])
    first, no, yes = found.verdict()
    assert first == "1 of 2 fit. Different devices are not ranked against each other."
    assert no.startswith("“small” does not fit ") and no.endswith(" too much.") and yes.startswith("“large” fits 2 GiB")
    assert found.cheapest is None


def test_the_plan_that_was_found_is_said(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "c.html"
    assert main(["compare", str(tiny), "--vary", "checkpointing=none,{budget: 1GiB}", "-o", str(page)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{budget: 1GiB}: "))
    assert "found checkpointing" in line
    assert f'<span class="why">{escape(line.removeprefix("{budget: 1GiB}: "))}</span>' in page.read_text()
