"""The command line: what goes to stdout and stderr, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memsim.api import simulate
from memsim.cli import console, validate
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.run import listing
from memsim.run.job import Run
from memsim.traces.recorder import ACTIONS
from memsim.validation import sequences as events
from memsim.version import version

TINY = """\
model: {
  model_type: llama, hidden_size: 256, intermediate_size: 512,
  num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 1000,
}
batch: {size: 1, sequence: 64}
steps: 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A run file of a small model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def record(folder: Path, run: Path, name: str = "tiny", **changes: object) -> Path:
    """Writes a simulation down as the recorder would, and gives the path of its .npz."""
    loaded = Run.load(run)
    timeline = simulate(loaded)
    data = {
        **timeline.to_json(),
        "run": {k: v for k, v in loaded.plain().items() if k != "model"},
        "model_config": dict(loaded.config),
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(data))
    made = events.of_simulation(timeline.tape, timeline.answer)
    arrays = {
        "action": made.action,
        "address": made.address,
        "bytes": made.bytes,
        "stream": np.zeros(len(made), np.uint64),
        "phase": made.phase,
    }
    np.savez(folder / f"{name}.npz", actions=np.array(ACTIONS), phases=np.array(made.phases), **arrays)
    return folder / f"{name}.npz"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that a mistake leaves on stderr, nothing being on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("memsim: ") and err.count("\n") == 1 and err.endswith("\n"), (out, err)
    return err


def test_simulate_prints_the_headline_and_the_steps(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tiny)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Peak ") and " reserved (" in out.splitlines()[0]
    assert [line.split()[0] for line in out.splitlines() if line.strip()[:1].isdigit()] == ["0", "1"]
    assert "\x1b" not in out + err


def test_simulate_json_is_all_there_is_on_stdout(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(
            [
                "simulate",
                str(tiny),
                "--json",
                "-o",
                str(tmp_path / "r.html"),
                "--set",
                "steps=3",
                "--set",
                "batch.size=2",
            ]
        )
        == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert len(data["steps"]) == 3 and data["oom"] is None and data["run"]["batch"]["size"] == 2
    assert {
        "peak_allocated",
        "peak_reserved",
        "peak_requested",
        "end_allocated",
        "end_reserved",
        "peak_segments",
        "retries",
        "ooms",
    } <= set(data["steps"][0])


def test_an_answer_exits_with_0_and_with_1_where_it_must_fit(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["simulate", str(tiny), "--set", "device_memory_gib=8MiB"]
    assert main(small) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main([*small, "--must-fit"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["simulate", str(tiny), "--must-fit"]) == 0
    capsys.readouterr()
    assert main([*small, "--json", "--must-fit"]) == 1
    assert json.loads(capsys.readouterr().out)["oom"].startswith("CUDA out of memory. Tried to allocate ")


def test_a_report_is_written_whole_and_said_on_stderr(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "out" / "report.html"
    report.parent.mkdir()
    assert main(["simulate", str(tiny), "-o", str(report)]) == 0
    assert f"wrote {report}" in capsys.readouterr().err
    assert report.read_text().rstrip().endswith("</html>") and [path.name for path in report.parent.iterdir()] == [
        "report.html"
    ]


def test_a_link_stays_a_link(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "target.html")
    assert main(["simulate", str(tiny), "-o", str(tmp_path / "link.html")]) == 0
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "target.html").stat().st_size > 1000


@pytest.mark.parametrize("output", ["absent/report.html", "."])
def test_an_output_that_cannot_be_is_refused_before_anything_is_simulated(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr("memsim.cli.simulate.simulated", lambda *args, **kwargs: pytest.fail("was simulated"))
    assert main(["simulate", str(tiny), "-o", str(tmp_path / output)]) == 2
    assert str(tmp_path) in one_line(capsys)
    assert main(["graph", str(tiny), "-o", str(tmp_path / output)]) == 2
    one_line(capsys)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission to write"):
        console.writable(tmp_path / "report.html")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_a_device_file_stays_one(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tiny), "-o", "/dev/full"]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("memsim: ")
    assert Path("/dev/full").is_char_device()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "memsim.cli", "devices"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2 and done.stderr == "memsim: output: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_mistake() -> None:
    command = f"{sys.executable} -m memsim.cli devices --json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "{\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate"], "Missing argument"),
        (["simulate", "tiny", "--jsn"], "--jsn"),
        (["simualte", "tiny"], "simualte"),
        (["validate", "x", "--tolerance", "much"], "--tolerance"),
        (["validate", "x", "--tolerance", "-1"], "--tolerance"),
        (["diff", "tiny"], "Missing argument"),
        (["graph", "tiny"], "Missing option"),
        (["validate", "no-such-folder"], "no-such-folder: is not a folder"),
        (["simulate", "no-such-run"], "no-such-run"),
        (["simulate", "qwen2.5-0.5b", "--set", "batch.sise=4"], "did you mean"),
        (["simulate", "qwen2.5-0.5b", "--set", "batch.size=-4"], "batch.size"),
        (["diff", "qwen2.5-0.5b", "no-such.npz"], "no-such.npz: cannot be read"),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in one_line(capsys)


def test_what_shows_only_once_the_model_is_built_names_the_file_too(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["simulate", str(tiny)], ["graph", str(tiny), "-o", str(tiny.with_suffix(".html"))]):
        assert main([*command, "--set", "method.kind=lora", "--set", "method.targets=[q_prj]"]) == 2
        assert one_line(capsys).startswith(
            f"memsim: {tiny}: method.targets: 'q_prj' matches no linear module; did you mean q_proj?"
        )
    assert not tiny.with_suffix(".html").exists()


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("simulate", "validate", "diff", "graph", "models", "devices"):
        assert f"\n  {command} " in out


COMMANDS = ("simulate", "validate", "diff", "replay", "compare", "graph", "models", "devices", "stacks")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_names_the_keys_and_h_is_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    short = capsys.readouterr().out
    assert f"Usage: memsim {command} " in short and "memsim keys" in short
    assert main([command, "--help"]) == 0 and capsys.readouterr().out == short


def test_a_usage_error_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["simulate"], "(see `memsim simulate --help`)"),
        (["compare", "a", "--vry", "x"], "(see `memsim compare --help`)"),
        (["validate", "x", "--tolerance", "much"], "(see `memsim validate --help`)"),
        (["simualte"], "(see `memsim --help`)"),
    ):
        assert main(arguments) == 2 and one_line(capsys).endswith(f"{words}\n")


def test_the_version_and_the_module() -> None:
    for command in (["-m", "memsim"], ["-m", "memsim.cli"]):
        done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"memsim {version()}\n" and done.stderr == ""


def test_the_shell_completes_commands_and_names() -> None:
    for words, at, found in (("memsim sim", 1, {"simulate"}), ("memsim simulate qwen2.5-7b", 2, {"qwen2.5-7b-lora"})):
        asked = {"_MEMSIM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        done = subprocess.run(
            [sys.executable, "-m", "memsim"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
        )
        assert found <= set(done.stdout.split()) and done.stderr == ""


def test_keys_lists_every_key_with_what_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["keys"]}
    run = Run(model="gpt2")
    dotted = {
        key if not isinstance(value, dict) else f"{key}.{inner}"
        for key, value in run.model_dump().items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert set(rows) == dotted and set(listing.ABOUT) == dotted, "each key is described"
    assert all(row["values"] and row["description"] for row in rows.values())
    assert [key for key, row in rows.items() if row["required"]] == ["model"]
    assert rows["batch.sequence"]["values"] == "a whole number from 1 to 16777216"
    assert rows["attention"]["values"] == "sdpa, eager, flash_attention_2" and rows["attention"]["default"] == "sdpa"
    assert rows["clip_grad_norm"]["values"] == "a positive number or null"
    assert rows["steps"]["default"] == 3 and rows["method.modules_to_save"]["default"] == []
    assert main(["keys"]) == 0
    assert "a whole number from 1 to 16777216" in capsys.readouterr().out


def test_validate_alone_takes_the_recordings_that_ship(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # as `pip install .` leaves a user in their clone
    assert main(["validate", "--filter", "[qw]*-lora8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in data["runs"]} == {"qwen2.5-7b-lora8", "qwen3-8b-lora8"}
    assert main(["validate", "--filter", "nothing-like-it"]) == 2
    assert "no recording that ships matches 'nothing-like-it'" in one_line(capsys)
    monkeypatch.setattr(validate, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert main(["validate", "--filter", "qwen3-8b-lora8"]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["validate"]) == 2
    assert "needs a folder of recorded runs, or --published FILE; in a clone of memsim" in one_line(capsys)


def test_models_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0 and "qwen2.5-72b" in capsys.readouterr().out
    assert (
        main(["models", "--json"]) == 0
        and json.loads(capsys.readouterr().out)["qwen2.5-72b"]["num_hidden_layers"] == 80
    )
    assert main(["devices"]) == 0 and "a100-80gb" in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["a100-80gb"]["memory"] == 80 * 2**30 and listed["h100"]["datasheet"]
    rtx = listed["rtx-4090"]
    assert (rtx["total"], rtx["context"], rtx["usable"]) == (24207 * 2**20, 666 * 2**20, 23541 * 2**20)
    assert rtx["sources"] == {
        "total": "public out-of-memory messages of PyTorch: 23.64 to 23.70 GiB; the lowest",
        "context": "0.45 to 0.65 GiB in public out-of-memory messages; the upper end",
    }
    assert listed["ascend-910b"]["flops"] == {} and listed["rtx-5080"]["total"] is None


def test_a_device_that_is_known_by_its_memory_alone_is_simulated_and_said(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, label, room in (
        ("mi300x", "MI300X", "about 186.24 GiB (the data sheet's 192 GiB less 3 %)"),
        ("mi325x", "MI325X", "about 248.32 GiB (the data sheet's 256 GiB less 3 %)"),
        ("ascend-910b", "Ascend 910B", "the 60.96 GiB that PyTorch sees"),
    ):
        assert main(["simulate", str(tiny), "--set", f"device={name}"]) == 0
        said = capsys.readouterr()
        assert (
            f"memsim: warning: device: {name} is not NVIDIA's: its memory is used, and the kernels of sm 80 stand in "
            "for its own, whose workspaces and scratch memory may be others; times are those of A100-80GB\n"
        ) in said.err
        assert f"fits one {label} with " in said.out and f" to spare of {room}, less 0.65 GiB of context." in said.out
        assert "on A100-80GB (" in said.out
    assert main(["simulate", str(tiny), "--set", "device=mi300x", "--set", "sm=90", "--json"]) == 0
    said = capsys.readouterr()
    assert "the kernels of sm 90 stand in" in said.err and json.loads(said.out)["verdict"] == "fits"


def test_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stacks"]) == 0
    out = capsys.readouterr().out
    assert "hf-4.48   2.6.0    4.48.1" in out and "one kept for each thread (forward's, backward's)" in out
    assert main(["stacks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["golden"]["differences"] == {} and listed["golden"]["held"] == {}
    assert "mistral" in listed["hf-4.48"]["held"]["model_type"]
    assert listed["hf-4.48"]["versions"]["transformers"] == "4.48.1"
    assert listed["hf-4.48"]["differences"]["allocator_ties"]["here"] == "by address"


def test_diff_of_a_run_with_its_own_recording_is_equal(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = record(tmp_path, tiny)
    assert main(["diff", str(tiny), str(trace), "--addresses"]) == 0
    assert capsys.readouterr().out.startswith("Equal: all ")
    assert main(["diff", str(tiny), str(trace), "--set", "batch.sequence=65", "--context", "2"]) == 1
    out = capsys.readouterr().out
    assert "differs, the first of" in out and sum(line.lstrip().startswith(">") for line in out.splitlines()) == 1


def test_validate_compares_lists_and_judges(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    record(folder, tiny)
    record(folder, tiny, "unknown", model_config={"model_type": "unheard-of"})
    assert main(["validate", str(folder), "--events", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in data["runs"]}
    assert rows["tiny"]["supported"] and rows["tiny"]["steps_exact"] and rows["tiny"]["events_equal"]
    assert rows["tiny"]["oom"] == {"recorded": False, "simulated": False}
    assert rows["tiny"]["peak_reserved"]["recorded"] == rows["tiny"]["peak_reserved"]["simulated"] > 0
    assert not rows["unknown"]["supported"] and "unheard-of" in rows["unknown"]["reason"]
    assert data["summary"]["supported"] == 1 and data["summary"]["unsupported"] == 1

    recorded = json.loads((folder / "tiny.json").read_text())
    recorded["steps"][1]["peak_reserved"] *= 2
    (folder / "doubled.json").write_text(json.dumps(recorded))
    assert main(["validate", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "peak_reserved: 1 of 2 equal to the byte, worst -50.000 % (doubled)" in out and "unheard-of" in out
    assert main(["validate", str(folder), "--filter", "tin*"]) == 0
    assert main(["validate", str(folder), "--tolerance", "50"]) == 0
    assert main(["validate", str(folder), "--filter", "unknown"]) == 1


def test_the_first_run_on_a_machine_says_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from memsim.allocator.compiled import caching

    class Cold:
        cache_path = str(tmp_path)

    class Kernel:
        stats = Cold()

    monkeypatch.setattr(caching, "replay", Kernel())
    console.say_if_cold()
    assert one_line(capsys) == "memsim: compiling the allocator, once on this machine (about ten seconds) …\n"
    (tmp_path / "caching.replay-72.py311.nbi").touch()
    console.say_if_cold()
    assert capsys.readouterr().err == ""


def test_golden_runs_agree(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(
        ["validate", str(golden), "--filter", "qwen2.5-0.5b-full*", "--events", "--tolerance", "0", "--json"]
    ) in (0, 1)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    for name in ("qwen2.5-0.5b-full", "qwen2.5-0.5b-full-ckpt", "qwen2.5-0.5b-full-oom"):
        assert rows[name]["supported"] and rows[name]["steps_exact"] and rows[name]["events_equal"], name
    assert rows["qwen2.5-0.5b-full-oom"]["oom"] == {"recorded": True, "simulated": True}
