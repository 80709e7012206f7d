"""Simulated against recorded results: errors, agreement, and what is listed but not compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from memsim.cli.validate import summary_lines, unsupported_table
from memsim.errors import InputError, Unsupported
from memsim.results.answers import Timeline
from memsim.validation import recorded as validate


def step(number: int, requested: int, allocated: int, reserved: int, **more: int) -> dict[str, int]:
    return {"step": number, "peak_requested": requested, "peak_allocated": allocated, "peak_reserved": reserved, **more}


def result(*steps: dict[str, int], oom: str | None = None) -> dict[str, Any]:
    return {"run": {"model": "tiny"}, "model_config": {"model_type": "llama"}, "steps": list(steps), "oom": oom}


def row(recorded: dict[str, Any], simulated: dict[str, Any]) -> validate.Row:
    return validate.row_of("run", recorded, simulated)


def test_equal_results_are_exact_and_pass_any_tolerance() -> None:
    same = row(result(step(0, 10, 20, 30), step(1, 11, 19, 30)), result(step(0, 10, 20, 30), step(1, 11, 19, 30)))
    assert same.steps_exact and same.difference is None and same.within(0.0)
    assert {metric: (peak.recorded, peak.simulated) for metric, peak in same.peaks.items()} == {
        "peak_requested": (11, 11),
        "peak_allocated": (20, 20),
        "peak_reserved": (30, 30),
    }


def test_a_peak_is_the_largest_over_the_steps_and_its_error_is_signed_percent() -> None:
    found = row(result(step(0, 10, 20, 1000), step(1, 10, 20, 900)), result(step(0, 10, 20, 995), step(1, 10, 20, 900)))
    assert found.peaks["peak_reserved"].error == pytest.approx(-0.5)
    assert found.within(0.5) and not found.within(0.4)
    assert found.difference == "step 0 peak_reserved: recorded 1000, simulated 995" and not found.steps_exact


def test_another_value_of_a_step_makes_it_inexact_but_does_not_fail() -> None:
    found = row(result(step(0, 1, 2, 3, peak_segments=7)), result(step(0, 1, 2, 3, peak_segments=8)))
    assert found.difference == "step 0 peak_segments: recorded 7, simulated 8" and found.within(0.0)


def test_where_memory_runs_out_only_steps_that_both_finished_are_compared() -> None:
    found = row(
        result(step(0, 1, 2, 3), oom="CUDA out of memory."),
        result(step(0, 1, 2, 3), step(1, 9, 9, 9), oom="CUDA out of memory."),
    )
    assert found.peaks["peak_reserved"] == validate.Peak(3, 3) and found.within(0.0)
    assert found.difference == "1 steps recorded, 2 simulated"


def test_where_no_step_was_finished_only_out_of_memory_is_compared() -> None:
    found = row(result(oom="CUDA out of memory."), result(oom="CUDA out of memory."))
    assert found.peaks["peak_allocated"] == validate.Peak(None, None) and found.within(0.0)
    assert not row(result(oom="CUDA out of memory."), result()).within(100.0)


def test_disagreeing_on_out_of_memory_fails_at_any_tolerance() -> None:
    assert not row(result(step(0, 1, 2, 3)), result(step(0, 1, 2, 3), oom="CUDA out of memory.")).within(100.0)


def test_json_has_both_sides_of_every_metric() -> None:
    data = row(result(step(0, 1, 2, 3)), result(step(0, 1, 2, 4))).to_json()
    assert data["name"] == "run" and data["supported"] is True and data["reason"] is None
    assert data["oom"] == {"recorded": False, "simulated": False}
    assert data["peak_reserved"] == {"recorded": 3, "simulated": 4} and data["peak_requested"] == {
        "recorded": 1,
        "simulated": 1,
    }
    assert data["steps_exact"] is False


def test_summary_counts_and_names_the_worst() -> None:
    rows = [
        row(result(step(0, 1, 2, 3)), result(step(0, 1, 2, 3))),
        validate.row_of("off", result(step(0, 1, 2, 100)), result(step(0, 1, 2, 98))),
        validate.Row("later", False, "fsdp: 8 is not supported yet", validate.RanOut(False, None)),
    ]
    summary = validate.summarize(rows, 0.5)
    assert (summary["runs"], summary["supported"], summary["unsupported"], summary["steps_exact"]) == (3, 2, 1, 1)
    assert summary["exact"] == {"peak_requested": 2, "peak_allocated": 2, "peak_reserved": 1}
    assert summary["worst_error"]["peak_reserved"] == {"percent": pytest.approx(-2.0), "name": "off"}
    assert summary["past_tolerance"] == ["off"]
    assert not validate.passed(rows, 0.5) and validate.passed(rows, 2.5)
    assert json.loads(json.dumps(summary)) == summary
    lines = "\n".join(summary_lines(rows, 0.5))
    assert "2 of 3 runs supported" in lines and "peak_reserved: 1 of 2 equal to the byte, worst -2.000 % (off)" in lines
    assert "past the tolerance of 0.5 %, or not agreeing: off" in lines


def test_nothing_compared_is_not_a_pass() -> None:
    assert not validate.passed([validate.Row("later", False, "no", validate.RanOut(False, None))], 0.5)


def test_a_run_that_is_not_supported_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "later.json").write_text(json.dumps(result(step(0, 1, 2, 3), oom=None)))

    def refuse(run: Mapping[str, Any], other_order: bool) -> Timeline:
        raise Unsupported("fsdp: 8 is not supported yet; 1 is")

    found = validate.check(tmp_path / "later.json", refuse)
    assert found.to_json() == {
        "name": "later",
        "supported": False,
        "reason": "fsdp: 8 is not supported yet; 1 is",
        "oom": {"recorded": False, "simulated": None},
        "steps_exact": None,
        "difference": None,
    }
    assert unsupported_table([found]) is not None


def test_a_run_that_is_wrong_is_listed_and_fails(tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text(json.dumps(result(step(0, 1, 2, 3), oom=None)))

    def refuse(run: Mapping[str, Any], other_order: bool) -> Timeline:
        raise InputError("run: batch.size: 0 is not a whole number")

    found = validate.check(tmp_path / "wrong.json", refuse)
    assert not found.supported and not found.within(100.0)
    assert validate.summarize([found], 0.5)["past_tolerance"] == ["wrong"]


def test_the_recorded_config_is_simulated_and_not_the_name() -> None:
    assert validate.run_of({"run": {"model": "tiny", "steps": 2}, "model_config": {"model_type": "llama"}}) == {
        "model": {"model_type": "llama"},
        "steps": 2,
    }
    assert validate.run_of({"run": {"model": "tiny"}}) == {"model": "tiny"}


def test_another_loop_than_the_bare_one_is_not_supported(tmp_path: Path) -> None:
    for variant in ("cache", "zero_first+hold", "trainer", 3):
        with pytest.raises(Unsupported, match=r"^variant: .*, another training loop, is not supported yet; base is$"):
            validate.run_of({"run": {"model": "tiny"}, "variant": variant})
    for same in ({"variant": "base"}, {"variant": None}, {}):
        assert validate.run_of({"run": {"model": "tiny"}, **same}) == {"model": "tiny"}
    (tmp_path / "cache.json").write_text(json.dumps({**result(step(0, 1, 2, 3)), "variant": "cache"}))

    def simulated(run: Mapping[str, Any], other_order: bool) -> Timeline:
        raise AssertionError("the bare loop was simulated")

    found = validate.check(tmp_path / "cache.json", simulated)
    assert (found.supported, found.refused) == (False, False)
    assert found.reason == "variant: 'cache', another training loop, is not supported yet; base is"


def test_the_stack_is_that_of_the_recorded_versions() -> None:
    older = {"torch": "2.6.0+cu124", "transformers": "4.48.1", "peft": "0.13.2", "bitsandbytes": "0.46.1"}
    assert validate.run_of({"run": {"model": "tiny"}, "versions": older})["stack"] == "hf-4.48"
    assert "stack" not in validate.run_of(
        {"run": {"model": "tiny"}, "versions": {"torch": "2.15.0", "transformers": "5.23.0"}}
    )
    assert validate.run_of({"run": {"model": "tiny"}, "versions": {**older, "peft": "0.14.0"}})["stack"] == "hf-4.48"
    with pytest.raises(Unsupported, match=r"versions: .* are no stack"):
        validate.run_of({"run": {"model": "tiny", "method": {"kind": "lora"}}, "versions": {**older, "peft": "0.14.0"}})
    with pytest.raises(
        Unsupported,
        match=r"torch 2.6.0\+cu124, transformers 5.23.0, peft 0.13.2 are no stack .* hf-4.48 is torch 2.6.0, "
        r"transformers 4.48.1, peft 0.13.2",
    ):
        validate.run_of({"run": {"model": "tiny"}, "versions": {**older, "transformers": "5.23.0"}})


def test_files_are_chosen_by_name_and_sorted(tmp_path: Path) -> None:
    for name in ("b-full", "a-full-x", "a-full", "notes"):
        (tmp_path / f"{name}.json").write_text("{}")
    (tmp_path / "a-full.npz").write_bytes(b"")
    assert [path.stem for path in validate.files(tmp_path, "*full*")] == ["a-full", "a-full-x", "b-full"]


def test_bad_folders_and_files_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        validate.files(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no recorded run \(\*\.json\) that matches 'z\*'"):
        validate.files(tmp_path, "z*")
    bad = tmp_path / "bad.json"
    for content, says in (
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a recorded run"),
        ('{"run": {}, "steps": 3}', "is not a recorded run"),
        ('{"run": {}, "steps": [{}]}', r"steps\[0\]: needs the whole numbers"),
        ('{"run": {}, "steps": [{"peak_requested": 1, "peak_allocated": "2", "peak_reserved": 3}]}', r"steps\[0\]"),
    ):
        bad.write_text(content)
        with pytest.raises(InputError, match=says) as caught:
            validate.recorded(bad)
        assert "\n" not in str(caught.value) and str(bad) in str(caught.value)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not JSON"):
        validate.recorded(bad)
