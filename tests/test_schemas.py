"""Every JSON that a command prints: its schema in docs/schema holds, and describes each of its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made import MIB

from memsim.cli.entry import main
from memsim.validation import published

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "schema"
SMALL = ["--set", "model.num_hidden_layers=2", "--set", "steps=2"]
GROWING = ("devices", "models", "replay", "stacks")  # entries that may have keys which their schema does not describe


def closed(schema: Any) -> Any:
    """The schema, with no key beyond those that it describes."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and "model" not in schema.get("required", ()):  # a Run has its own check
        made.setdefault("additionalProperties", False)
    return made


def printed(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict[str, Any]:
    """What the command prints, held to its schema."""
    assert main([*arguments, "--json"]) in (0, 1)
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema if name in GROWING else closed(schema)).validate(data)
    assert data["schema"] == 1 and next(iter(data)) == "schema"
    return data


def test_every_schema_is_listed() -> None:
    listed = (FOLDER / "README.md").read_text()
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {
        "compare",
        "devices",
        "keys",
        "models",
        "replay",
        "replay-check",
        "simulate",
        "stacks",
        "validate",
        "validate-published",
    }
    assert all(f"[{name}.json]({name}.json)" in listed for name in names)


@pytest.mark.parametrize("name", ["models", "devices", "stacks", "keys"])
def test_lists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(printed(capsys, name, name)) > 1


@pytest.mark.parametrize("memory", ["80GiB", "1GiB", "64MiB"])
def test_simulate(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "simulate", "simulate", "qwen2.5-0.5b", *SMALL, "--set", f"device_memory_gib={memory}")
    assert (found["oom"] is None) == (memory == "80GiB")


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    vary = ["--vary", "device_memory_gib=1,80"]
    found = printed(capsys, "compare", "compare", "qwen2.5-0.5b", *vary, *SMALL)
    assert [case["fits"] for case in found["cases"]] == [False, True]


def test_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = str(tmp_path / "snapshot.pickle")
    assert main(["simulate", "qwen2.5-0.5b", *SMALL, "-o", page, "--json"]) == 0
    capsys.readouterr()
    rows = printed(capsys, "replay", "replay", page, "--allocator", "", "--device-memory", f"{64 * MIB}B")["rows"]
    assert len(rows) == 1 and rows[0]["out_of_memory_event"] is not None
    rows = printed(capsys, "replay", "replay", page, "--smallest-device")["rows"]
    assert rows[0]["smallest_device"] > 64 * MIB
    rows = printed(capsys, "replay-check", "replay", page, "--check")["rows"]
    assert rows[0]["agree"] == rows[0]["compared"] > 0


def test_validate(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--events"]):
        found = printed(capsys, "validate", "validate", "--filter", "qwen2.5-0.5b-full*", *options)
        assert found["summary"]["runs"] == len(found["runs"]) > 1


def test_validate_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(published.NEEDED, "x") | {"parallelism": "8 GPUs"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    found = printed(capsys, "validate-published", "validate", "--published", str(tmp_path / "p.jsonl"))
    assert found["summary"]["simulated"] == 0
