"""Streams, terminals, names, caches and disks that are not as usual: one line and exit code 2, or it works."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest

from memsim.cli.entry import main
from memsim.errors import show, visible
from memsim.files import beside
from memsim.report import page
from memsim.results.side_by_side import side_by_side
from memsim.traces.load import load_trace


def command(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`memsim`, in a process of its own."""
    words = [sys.executable, "-m", "memsim.cli", *arguments]
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {shell}', "memsim", *words], capture_output=True, env=os.environ | environment
    )


def test_a_stream_that_is_closed() -> None:
    done = command("devices", shell=">&-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"memsim: stdout is closed; send it to /dev/null if nobody is to read it\n"
    done = command("devices", "--json", shell="2>&-")
    assert done.returncode == 0 and "h100" in json.loads(done.stdout)
    done = command("simulate", "no-such", shell="2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
def test_a_terminal_without_the_signs(encoding: str, tmp_path: Path) -> None:
    done = command("stacks", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and b"by the age of their segment" in done.stdout
    path = tmp_path / "d“ä”.npz"
    path.write_bytes(hostile.npz(hostile.operations()))
    done = command("replay", str(path), PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and b"d\\x" not in done.stdout.replace("ä".encode(encoding, "replace"), b"")
    done = command("simulate", "x…", PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and done.stderr.startswith(b"memsim: 'x...'") and b"Traceback" not in done.stderr


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.npz"
    with open(path, "wb") as file:
        file.write(hostile.npz(hostile.operations()))
    done = command("replay", os.fsdecode(path))
    assert done.returncode == 0 and b"\\udcff.npz" in done.stdout


@pytest.mark.parametrize("environment", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CACHE_DIR": "/dev/null/x"}])
def test_numba_as_others_set_it(tmp_path: Path, environment: dict[str, str]) -> None:
    path = hostile.write(tmp_path, ".npz", hostile.npz(hostile.operations()))
    done = command("replay", str(path), "--json", **environment)
    assert done.returncode == 0 and json.loads(done.stdout)["rows"][0]["out_of_memory_event"] is None


def test_a_cache_that_nothing_can_be_put_into(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba
    from numba.core.caching import FunctionCache

    from memsim.allocator.compiled.jit import njit

    def unwritable(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FunctionCache, "save_overload", unwritable)
    assert njit(cache=True)(lambda number: number + 1)(2) == 3
    made = []

    def locates(**options: object) -> object:
        made.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", locates)
    assert njit(cache=True, nogil=True)(len)("ab") == 2 and made == [{"cache": True, "nogil": True}, {"nogil": True}]


ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202egpj"


def test_escapes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(ESCAPE) == "\\x1b]0;owned\\x07\\x1b[2J\\u202egpj"
    path = tmp_path / f"{ESCAPE}.npz"
    path.write_bytes(hostile.npz(hostile.operations() | {"answers": np.zeros((31, 2), np.int64)}))
    (tmp_path / f"{ESCAPE}.yaml").write_text(hostile.RUN)
    for arguments in (
        ["replay", str(path)],
        ["replay", str(path), "--check"],
        ["replay", f"{path}.pickle"],
        ["simulate", ESCAPE],
        ["simulate", str(tmp_path / f"{ESCAPE}.yaml")],
        ["compare", str(tmp_path / f"{ESCAPE}.yaml"), "qwen2.5-0.5b-full"],
        ["compare", str(tmp_path / f"{ESCAPE}.yaml"), "qwen2.5-0.5b-full", "--csv"],
        ["compare", str(tmp_path / f"{ESCAPE}.yaml"), "qwen2.5-0.5b-full", "--json"],
        [ESCAPE],
    ):
        main(arguments)
        out, err = capsys.readouterr()
        assert not set(out + err) & {"\x1b", "\x07", "\u202e"}, arguments
        assert "owned" in out + err or "yaml" in str(arguments)


def test_csv_cells_are_no_formulas() -> None:
    timeline = hostile_timeline()
    found = side_by_side([timeline] * 6, ["=1+1", "+a", "-a", "@a", "a=1", "\tx"]).to_csv()
    assert [line.split(",")[0] for line in found.splitlines()] == ["run", "'=1+1", "'+a", "'-a", "'@a", "a=1", "'\\tx"]


def hostile_timeline() -> object:
    from memsim import Run, simulate

    return simulate(Run.load({"model": "llama3.2-1b", "steps": 1}))


@pytest.mark.parametrize("name", ["report.pdf", "g.svg", "-", "report", "x.htm", "x.html.gz"])
@pytest.mark.parametrize("which", ["simulate", "graph", "compare", "replay"])
def test_a_suffix_that_is_not_known(tmp_path: Path, which: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = hostile.write(tmp_path, ".npz", hostile.npz(hostile.operations()))
    inputs = {"replay": [str(trace)], "compare": ["llama3.2-1b-full", "qwen2.5-0.5b"]}.get(which, ["llama3.2-1b-full"])
    assert main([which, *inputs, "-o", str(tmp_path / name)]) == 2
    valid = ".html or .pickle or .json" if which in ("simulate", "replay") else ".html"
    said = f"memsim: {tmp_path / name}: does not end in {valid}, which is what this command writes\n"
    assert capsys.readouterr().err == said and not (tmp_path / name).exists()


def test_no_input_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = hostile.write(tmp_path, ".pickle", pickle.dumps(hostile.plain_snapshot()))
    (tmp_path / "link.pickle").symlink_to(trace)
    recorded = hostile.write(tmp_path, ".npz", hostile.npz(hostile.recording()))
    recorded.with_suffix(".json").write_text("{}")
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "run.html").write_text("model: config.json\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments in (
        ["replay", str(trace), "-o", str(trace)],
        ["replay", str(trace), "-o", str(tmp_path / "link.pickle")],
        ["replay", str(recorded), "-o", str(recorded.with_suffix(".json"))],
        ["simulate", str(tmp_path / "run.html"), "-o", str(tmp_path / "run.html")],
        ["simulate", str(tmp_path / "run.html"), "-o", str(tmp_path / "config.json")],
        ["graph", str(tmp_path / "run.html"), "-o", str(tmp_path / "run.html")],
        ["compare", str(tmp_path / "run.html"), "qwen2.5-0.5b", "-o", str(tmp_path / "run.html")],
    ):
        assert main(arguments) == 2, arguments
        assert f"{arguments[-1]}: is an input of this command, and would be lost" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


KILLED = """\
import os, signal, sys
from pathlib import Path
from memsim.files import beside
with beside(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_killed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("before")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "r.html")], check=False)
    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"] and (tmp_path / "r.html").read_text() == "before"


def test_a_write_without_files_that_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for without in (lambda: monkeypatch.setattr(os, "link", no_link), lambda: monkeypatch.delattr(os, "O_TMPFILE")):
        without()
        with beside(tmp_path / "r.html") as file:
            file.write(b"whole")
        assert [path.name for path in tmp_path.iterdir()] == ["r.html"] and (tmp_path / "r.html").read_text() == "whole"
        (tmp_path / "r.html").unlink()


def no_link(*arguments: object, **options: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_values_in_errors_are_short() -> None:
    shared: list[object] = []
    for _ in range(64):
        shared = [shared, shared]
    assert len(show(shared)) <= 61 and len(show("a" * 10**6)) <= 61
    assert show(-(10**5000)) == "a number of thousands of digits"


def test_long_lines_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "x" * 100_000]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and len(err) <= 1004 and " … " in err and err.endswith("lists the models)\n")


def test_pages_hold_no_name_as_markup(tmp_path: Path) -> None:
    path = tmp_path / "<script>x.npz"
    path.write_bytes(hostile.npz(hostile.operations()))
    from memsim import replay

    assert "<script>x" not in page.report_html(replay(load_trace(path)))
