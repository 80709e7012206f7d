"""What RUN may be: an example, a name, a file, a model's config, a name on the hub, whose config is looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from memsim import catalog
from memsim.api import simulate
from memsim.cli.entry import main
from memsim.errors import InputError
from memsim.run import hub
from memsim.run.job import Run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
COMMIT = "0123456789012345678901234567890123456789"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as config.json of one model needs."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        data = json.dumps(LLAMA).encode()
        if self.path == "/org/tiny/resolve/main/config.json":
            self.send_response(200)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            gated = self.path.startswith("/org/gated/")
            data = b""
            self.send_response(403 if gated else 404)
            missing = "EntryNotFound" if self.path.startswith("/org/bare/") else "RepoNotFound"
            self.send_header("X-Error-Code", "GatedRepo" if gated else missing)
            if not gated:
                self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub on loopback and an empty cache; gives the requests that it got."""
    if find_spec("huggingface_hub") is None:
        pytest.skip("needs the extra memsim[hub]")
    asked: list[str] = []
    made = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked}))
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server_address[1]}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield asked
    made.shutdown()
    made.server_close()
    thread.join()


def cached(folder: Path, name: str, config: object, ref: bool = True) -> Path:
    """Lays a config.json down as huggingface_hub's cache has it."""
    model = folder / f"models--{name.replace('/', '--')}"
    path = model / "snapshots" / COMMIT / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config))
    if ref:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(COMMIT)
    return path


def refused(source: str) -> str:
    with pytest.raises(InputError) as error:
        Run.load(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_of_the_hub_that_the_catalogue_has() -> None:
    for name in ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b-instruct"):
        run = Run.load(name)
        assert run.config == Run.load("qwen2.5-7b").config and run.model_name == "qwen2.5-7b"
        assert Run(model=name).config == run.config and Run.load(run.plain()) == run
    assert Run.load("Qwen/Qwen2.5-7B-Instruct").name == "Qwen2.5-7B-Instruct"


def test_names_of_the_hub_are_names_of_the_catalogue() -> None:
    data = json.loads((catalog.HERE / "hub.json").read_text())
    assert set(data) <= set(catalog.models())
    every = [name.lower() for names in data.values() for name in names]
    assert len(every) == len(set(every)) and all(hub.is_name(name) for name in every)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("ref", [True, False])
def test_a_config_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, ref: bool) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    below = {"HF_HOME": "hub", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    cached(tmp_path / below, "org/tiny", LLAMA, ref)
    run = Run.load("org/tiny", set=["steps=2"])
    assert run.config == LLAMA and run.model_name == run.name == "tiny" and run.argument == "org/tiny --set steps=2"
    assert run.plain()["model"] == LLAMA, "written out, the Run stands for itself"


def test_a_cached_config_is_checked_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = cached(tmp_path, "org/odd", {**LLAMA, "num_key_value_heads": 3})
    assert refused("org/odd").startswith(f"org/odd: model: {path}: num_key_value_heads: 3 does not divide")


def test_a_config_is_fetched_once_and_said_in_a_line(server: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.load("org/tiny")
    assert run.config == LLAMA and run.model_name == "tiny"
    assert {request.partition(" ")[2] for request in server} == {"/org/tiny/resolve/main/config.json"}
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("memsim: fetching config.json of org/tiny from http://127.0.0.1:")
    assert err.count("\n") == 1
    before = len(server)
    assert Run(model="org/tiny").config == LLAMA and len(server) == before and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/absent", "has no such model, or a private one (HF_TOKEN)"),
        ("org/gated", "gives its config.json only to those who were let in: `hf auth login`, or set HF_TOKEN"),
        ("org/bare", "has no config.json of it"),
    ],
)
def test_why_a_config_cannot_be_had(server: list[str], name: str, words: str) -> None:
    line = refused(name)
    assert line.startswith(f"{name}: model: '{name}': http://127.0.0.1:") and words in line and server


def test_no_hub_answers(server: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's retries, 23 s in all
    assert "org/tiny: model: 'org/tiny': its config.json could not be fetched from http://127.0.0.1:9: " in refused(
        "org/tiny"
    )


def test_offline_nothing_is_asked(server: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert "and HF_HUB_OFFLINE keeps it from being fetched" in refused("org/tiny") and not server


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "(with `pip install 'memsim[hub]'` its config.json is fetched; the path of one works too)" in refused(
        "org/tiny"
    )


def test_a_config_is_a_run_with_defaults(tmp_path: Path) -> None:
    for name, text in (("config.json", json.dumps(LLAMA, indent="\t")), ("c.yaml", json.dumps(LLAMA))):
        path = tmp_path / name
        path.write_text(text)
        run = Run.load(path, set=["batch.size=2"])
        assert run.config == LLAMA and run.batch.size == 2 and run.name == path.stem
    assert Run.load(tmp_path).config == LLAMA, "a folder with a config.json"
    assert Run.load(tmp_path / "config.json", set=["model.num_hidden_layers=1"]).config["num_hidden_layers"] == 1


def test_a_dtype_that_is_not_the_runs_is_said(recwarn: pytest.WarningsRecorder) -> None:
    line = "model.torch_dtype: 'float32' is not read: weights are in bf16, the default; `precision` says another"
    with pytest.warns(UserWarning, match=f"^{line}$"):
        simulate(Run(model=LLAMA | {"torch_dtype": "float32"}))
    with pytest.warns(UserWarning, match=r"^model\.dtype: 'float16' is not read"):
        simulate(Run(model=LLAMA | {"dtype": "float16", "torch_dtype": "bfloat16"}))
    for said in ({"torch_dtype": "bfloat16"}, {"dtype": "auto"}, {"dtype": None}, {}):
        simulate(Run(model=LLAMA | said))
    simulate(Run(model=LLAMA | {"torch_dtype": "float32"}, precision="fp16"))
    assert not recwarn.list


def test_a_file_with_both_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": "gpt2", "model_type": "gpt2"}))
    assert refused(str(path)).startswith(f"{path}: model_type: unknown key")


def test_a_config_with_keys_of_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**LLAMA, "batch": {"size": 2}}))
    assert "model_type: unknown key" in refused(str(path))


def test_a_path_that_is_wrong_is_not_looked_for_on_the_hub(
    server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert refused("runs/mine").startswith("runs/mine: no such file; give a YAML file or one of the runs ")
    assert not server
    cached(tmp_path / "cache", "runs/mine", LLAMA)
    assert Run.load("runs/mine").config == LLAMA


def test_a_file_named_as_on_the_hub_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen2.5-7B").mkdir(parents=True)
    (tmp_path / "Qwen" / "Qwen2.5-7B" / "config.json").write_text(json.dumps(LLAMA))
    assert Run.load("Qwen/Qwen2.5-7B").config == LLAMA


def test_set_changes_fields_of_a_model_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.load("qwen2.5-7b", set=["model.num_hidden_layers=2", "model.hidden_act=gelu"])
    full = Run.load("qwen2.5-7b").config
    assert {key for key in run.config if run.config[key] != full.get(key)} == {
        "num_hidden_layers",
        "hidden_act",
        "_name_or_path",
    }
    assert run.model_name == "qwen2.5-7b, changed" and Run.load(run.plain()).model_name == run.model_name
    assert Run.load("qwen2.5-72b-lora", set=["model=gpt2", "model.n_layer=2"]).config["n_layer"] == 2
    assert main(["simulate", "Qwen/Qwen2.5-0.5B", "--set", "model.num_hidden_layers=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["model"]["num_hidden_layers"] == 2
