"""The Run: where it comes from, what it defaults to, what changes it, and that it survives being written out."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

import memsim
from memsim import catalog
from memsim.errors import InputError
from memsim.run import yamlfile
from memsim.run.job import Run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def test_defaults_are_those_of_the_recordings() -> None:
    plain = Run(model="qwen2.5-0.5b").plain()
    assert plain.pop("efficiency") == {"matmul": 0.7, "attention": 0.5, "memory": 0.7, "pcie": 0.8, "launch_us": 5.0}
    assert plain == {
        "model": "qwen2.5-0.5b",
        "method": {
            "kind": "full",
            "rank": 8,
            "targets": "all-linear",
            "dropout": 0.0,
            "double_quant": True,
            "dora": False,
            "rslora": False,
            "bias": "none",
            "layers": None,
            "target_parameters": [],
            "modules_to_save": [],
            "feedforward": None,
            "casts": "peft",
            "quantization": "nf4",
            "group_size": 128,
        },
        "addresses": "ascending",
        "batch": {"size": 1, "sequence": 512, "accumulation": 1, "padding": 0.0, "target": None},
        "train": {"only": [], "freeze": []},
        "precision": "bf16",
        "attention": "sdpa",
        "checkpointing": "none",
        "routing": "balanced",
        "optimizer": "adamw",
        "optimizer_in_backward": False,
        "grad_scaler": False,
        "clip_grad_norm": None,
        "fsdp": 1,
        "allocator": "",
        "device": None,
        "device_memory_gib": 80,
        "sm": 80,
        "steps": 3,
        "stack": "golden",
    }


def test_a_run_comes_from_a_file_an_example_a_model_a_mapping_and_another_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: qwen2.5-7b\nmethod: {kind: lora, rank: 16}\nbatch:\n  sequence: 2048\n")
    run = Run.load(path)
    assert (
        run
        == Run.load(str(path))
        == Run(model="qwen2.5-7b", method={"kind": "lora", "rank": 16}, batch={"sequence": 2048})
    )
    assert run == Run.load({"model": "qwen2.5-7b", "method": {"kind": "lora", "rank": 16}, "batch": {"sequence": 2048}})
    assert run == Run.load(run) and run.name == "mine" and Run.load(run).name == "mine"
    assert Run.load("qwen2.5-7b") == Run(model="qwen2.5-7b")
    assert (
        Run.load("qwen2.5-72b-lora").method.kind == "lora" and Run.load("qwen2.5-72b-lora").name == "qwen2.5-72b-lora"
    )
    assert memsim.Run is Run


def test_json_is_yaml_too(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": "gpt2", "steps": 2}))
    assert Run.load(path).steps == 2


def test_set_changes_keys_and_makes_the_mappings_that_are_missing() -> None:
    run = Run.load(
        "qwen2.5-0.5b",
        set=(
            "batch.sequence=4096",
            "method.kind=lora",
            "method.targets=[q_proj, v_proj]",
            "clip_grad_norm=1e-1",
            "allocator=a:1,b:2",
        ),
    )
    assert (run.batch.sequence, run.method.kind, run.method.targets) == (4096, "lora", ("q_proj", "v_proj"))
    assert run.clip_grad_norm == 0.1 and run.allocator == "a:1,b:2"
    assert Run.load("qwen2.5-0.5b", set=["method.targets=q_proj,v_proj"]).method.targets == ("q_proj", "v_proj")
    assert Run.load(run, set=["clip_grad_norm=null", "allocator="]).clip_grad_norm is None
    assert run.clip_grad_norm == 0.1, "the Run that was loaded from is another one"


def test_a_run_cannot_be_changed() -> None:
    run = Run(model="gpt2")
    with pytest.raises(ValueError, match="frozen"):
        run.steps = 5


def test_a_device_sets_memory_and_compute_capability_unless_they_are_given() -> None:
    run = Run(model="gpt2", device="h100")
    usable = (80998 - 666) * 2**20  # 79.10 GiB that PyTorch sees, less 0.65 of context
    assert (run.device_memory_gib, run.sm, run.device_bytes) == (usable / 2**30, 90, usable)
    assert Run(model="gpt2", device="h100", device_memory_gib="40GiB").device_memory_gib == 40
    assert Run(model="gpt2", device="h100", sm=80).sm == 80
    mi300x = Run(model="gpt2", device="mi300x")
    assert (mi300x.device_bytes, mi300x.sm) == (int(0.97 * 192 * 2**30) - 666 * 2**20, 80)


@pytest.mark.parametrize("name", catalog.devices())
def test_a_device_survives_being_written_out_to_the_byte(name: str) -> None:
    run, device = Run(model="gpt2", device=name), catalog.devices()[name]
    assert run.device_bytes == device.usable
    assert "device_memory_gib" not in run.to_yaml()
    for again in (Run.load(run.plain()), Run.load(yamlfile.mapping(yamlfile.parse(run.to_yaml(), "yaml"), "yaml"))):
        assert again == run and again.device_bytes == device.usable
    sheet = Run(model="gpt2", device=name, device_memory_gib=device.memory / 2**30)
    assert sheet.device_bytes == device.memory, "what is given wins, to the byte"
    assert Run.load(sheet.plain()) == sheet != run and "device_memory_gib" in sheet.to_yaml()


def test_a_device_that_is_set_decides_whatever_the_file_says_of_another(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{model: gpt2, device_memory_gib: 24, sm: 86}")
    assert Run.load(path, set=["device=h200"]).device_bytes == catalog.devices()["h200"].usable
    assert Run.load(path, set=["device=h200", "device_memory_gib=100"]).device_bytes == 100 * 2**30


def test_no_device_leaves_what_the_file_says_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{model: gpt2, device: h100, device_memory_gib: 24, sm: 86}")
    run = Run.load(path, set=["device=null"])
    assert (run.device, run.device_memory_gib, run.sm) == (None, 24, 86)


@pytest.mark.parametrize(
    ("size", "count"),
    [(5.9, int(5.9 * 2**30)), ("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("24576MiB", 24 * 2**30), (1024, 2**40)],
)
def test_device_memory_in_bytes(size: object, count: int) -> None:
    assert Run(model="gpt2", device_memory_gib=size).device_bytes == count


@pytest.mark.parametrize("name", catalog.examples())
def test_every_example_loads_and_survives_being_written_out(name: str) -> None:
    run = Run.load(name)
    again = Run(**yamlfile.mapping(yamlfile.parse(run.to_yaml(), "yaml"), "yaml"))
    assert again == run and hash(again) == hash(run) and again.config == run.config
    assert run.device, "an example names its device"
    assert catalog.examples()[name].read_text().startswith("# "), "an example says which question it asks"


def test_what_follows_from_the_device_is_not_written_out() -> None:
    assert "device_memory_gib" not in Run(model="gpt2", device="h100").to_yaml()
    assert "device_memory_gib: 79\n" in Run(model="gpt2", device="h100", device_memory_gib=79).to_yaml()


def test_words_that_yaml_reads_as_something_else_survive() -> None:
    run = Run(model="gpt2", method={"targets": ["on", "1e-3", "null"]}, clip_grad_norm=1e-5)
    assert Run.load(yamlfile.mapping(yamlfile.parse(run.to_yaml(), "yaml"), "yaml")) == run


def test_copies_and_pickles_are_equal() -> None:
    run = Run.load("qwen2.5-7b-lora")
    for again in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert again == run and again.config == run.config and again.name == run.name


def test_argument_repeats_the_run_on_a_command_line() -> None:
    assert Run.load("gpt2", set=["batch.size=2", "allocator=a b"]).argument == (
        "gpt2 --set batch.size=2 --set 'allocator=a b'"
    )
    assert Run(model="gpt2").argument == "" and Run(model="gpt2").name == "gpt2-full"


def test_a_model_from_the_catalogue_from_fields_and_from_a_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Run(model="qwen2.5-72b").config["num_hidden_layers"] == 80
    inline = Run(model=LLAMA)
    assert inline.config == LLAMA and inline.model_name == "llama" and inline.plain()["model"] == LLAMA
    folder = tmp_path / "somewhere" / "tiny"
    folder.mkdir(parents=True)
    fields = {
        **LLAMA,
        "_name_or_path": "org/tiny-llama",
        "torch_dtype": "bfloat16",
        "head_dim": None,
        "rope_scaling": None,
        "architectures": ["LlamaForCausalLM"],
    }
    (folder / "config.json").write_text(json.dumps(fields))
    (tmp_path / "somewhere" / "run.yaml").write_text("model: tiny/config.json")
    run = Run.load(tmp_path / "somewhere" / "run.yaml")
    assert run.config == fields and run.model_name == "tiny-llama"
    assert Run(model=str(folder)).config == fields, "a folder that holds a config.json"
    assert Run.load(run.plain()) == run, "written out, the Run no longer needs the file"
    monkeypatch.chdir(folder)
    assert Run(model="config.json") == run


def test_every_golden_run_is_a_run(shared: Path) -> None:
    files = [
        *sorted((shared / "golden" / "runs").glob("*.yaml")),
        *sorted((shared / "golden" / "runs-2.6").glob("*.yaml")),
    ]
    assert len(files) > 100
    for path in files:
        folder = path.parent.name.replace("runs", "results")
        recorded = json.loads((path.parents[1] / folder / f"{path.stem}.json").read_text())
        run = Run.load(path)
        assert run.config == recorded["model_config"], path
        ours = run.plain()
        for key, value in recorded["run"].items():
            mine = ours[key]
            assert (
                {k: mine[k] for k in value} == value
                if isinstance(value, dict) and isinstance(mine, dict)
                else mine == value
            ), (path, key)


@pytest.mark.parametrize("key", ["clip_grad_norm", "device_memory_gib", "method.dropout", "steps", "batch.size"])
@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400])
def test_a_number_that_no_float_holds_is_refused_in_a_line(key: str, number: str) -> None:
    with pytest.raises(InputError) as error:
        Run.load("gpt2", set=[f"{key}={number}"])
    assert str(error.value).startswith(f"--set: {key}: {number[:5]}") and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"a\nb": 1}, r"keyword arguments: a\nb: unknown key"),
        ({"\x1b[31mred": 1}, r"keyword arguments: \x1b[31mred: unknown key"),
        ({"method": "a\nb"}, r"keyword arguments: method: 'a\nb' is not a mapping; write method: {kind: a\nb}"),
        ({"model": {"model_type": "llama", "hidden_siz\n": 1}}, r"keyword arguments: model.hidden_siz\n: unknown key"),
    ],
)
def test_an_error_is_one_printable_line_whatever_the_file_holds(data: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as error:
        Run(**{"model": "gpt2", **data})
    assert str(error.value).startswith(line) and str(error.value).isprintable()


def test_set_is_blamed_for_the_key_above_its_own() -> None:
    with pytest.raises(InputError) as error:
        Run.load("gpt2", set=["modl.hidden_size=4"])
    assert str(error.value).startswith("--set: modl: unknown key; did you mean model?")


@pytest.mark.parametrize(
    "text",
    [
        "model: gpt2\nmodel: gpt2-xl",
        "[1, 2]",
        "",
        "just words",
        "a: [",
        "1: 2",
        "a: &x [1]\nb: *x",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        Run.load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_place_is_what_errors_call_the_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: gpt2")
    places = [Run.load(path).place, Run.load("qwen2.5-7b-lora").place, Run.load("gpt2").place, Run(model="gpt2").place]
    assert places == [str(path), "qwen2.5-7b-lora (example)", "gpt2", "keyword arguments"]
