"""What a wrong Run gets: one line with the place, the key, what was found and what would be valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim.api import simulate
from memsim.errors import InputError
from memsim.run.job import Run

M = "qwen2.5-7b"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def refused(**data: object) -> str:
    with pytest.raises(InputError) as error:
        Run(**data)
    line = str(error.value)
    assert "\n" not in line and line.startswith("keyword arguments: ")
    return line.removeprefix("keyword arguments: ")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {},
            "model: missing; give a name (`memsim models` lists them), the path of a Hugging Face config.json, or its "
            "fields",
        ),
        ({"modle": M}, "modle: unknown key; did you mean model? (valid: model, method, batch, "),
        ({"model": M, "sequence": 4}, "sequence: unknown key; did you mean batch.sequence? (valid: model, "),
        (
            {"model": M, "batch": {"seqence": 4}},
            "batch.seqence: unknown key; did you mean batch.sequence? (valid: size, sequence, accumulation, padding, "
            "target)",
        ),
        (
            {"model": M, "method": {"kind": "lora", "precision": "bf16"}},
            "method.precision: unknown key; did you mean precision? (valid: kind, rank, targets, ",
        ),
        (
            {"model": M, "precision": "bf61"},
            "precision: 'bf61' is not one of bf16, amp-bf16, amp-fp16, fp32, tf32, fp16; did you mean bf16?",
        ),
        (
            {"model": M, "optimizer": "AdamW"},
            "optimizer: 'AdamW' is not one of adamw, adamw-fused, adamw-for-loop, sgd, ",
        ),
        (
            {"model": M, "checkpointing": True},
            "checkpointing: True is not a strategy; write full, or reentrant where use_reentrant is true (there are ",
        ),
        ({"model": M, "checkpointing": False}, "checkpointing: False is not a strategy; write none (there are none, "),
        (
            {"model": M, "attention": "fa2"},
            "attention: 'fa2' is not one of sdpa, eager, flash_attention_2; did you mean flash_attention_2?",
        ),
        (
            {"model": M, "packing": True},
            "packing: unknown key; packed sequences are full ones: batch.sequence as long as they are packed, ",
        ),
        (
            {"model": M, "deepspeed": "z3.json"},
            "deepspeed: unknown key; memsim simulates one GPU, where nothing is sharded (`memsim keys` lists all)",
        ),
        (
            {"model": M, "stage": 3},
            "stage: unknown key; ZeRO's shards over several GPUs, of which memsim ",
        ),
        ({"model": M, "method": {"lora_r": 8}}, "method.lora_r: unknown key; write method.rank"),
        (
            {"model": "qwen2.5-7", "batch": {"seqence": 4, "size": 0}, "optimizer": "adamv", "packing": True},
            "batch.seqence: unknown key; did you mean batch.sequence? (valid: size, sequence, accumulation, padding, "
            "target); and packing: unknown key; packed sequences are full ones: batch.sequence as long as they are "
            "packed, batch.padding: 0 (`memsim keys` lists all); and batch.size: 0 is not a whole number from 1 to "
            "1048576; and optimizer: 'adamv' is not one of adamw, ",
        ),
        (
            {"model": {**LLAMA, "hidden_size": 0}, "steps": 0},
            "steps: 0 is not a whole number from 1 to 10000; and model.hidden_size: 0 is not a positive whole number",
        ),
        ({"model": "qwen2.5-7", "steps": 0}, "steps: 0 is not a whole number from 1 to 10000; and model: 'qwen2.5-7' "),
        (
            {"model": M, "method": "lora"},
            "method: 'lora' is not a mapping; write method: {kind: lora} (keys: kind, rank, targets, dropout, "
            "quantization, ",
        ),
        (
            {"model": M, "method": {"kind": "dora"}},
            "method.kind: 'dora' is not one of full, lora, qlora, ia3, qia3; did you mean lora?",
        ),
        (
            {"model": M, "batch": 4},
            "batch: 4 is not a mapping; write batch: {size: 4} (keys: size, sequence, accumulation, padding, target)",
        ),
        ({"model": M, "batch": {"size": 0}}, "batch.size: 0 is not a whole number from 1 to 1048576"),
        ({"model": M, "batch": {"sequence": -1}}, "batch.sequence: -1 is not a whole number from 1 to 16777216"),
        ({"model": M, "batch": {"sequence": 1.5}}, "batch.sequence: 1.5 is not a whole number from 1 to 16777216"),
        ({"model": M, "batch": {"sequence": "12"}}, "batch.sequence: '12' is not a whole number from 1 to 16777216"),
        (
            {"model": M, "batch": {"accumulation": True}},
            "batch.accumulation: True is not a whole number from 1 to 4096",
        ),
        (
            {"model": M, "batch": {"size": 2**20, "sequence": 2**20}},
            "batch: 1048576 × 1048576 tokens are more than 268435456",
        ),
        ({"model": M, "method": {"rank": 0}}, "method.rank: 0 is not a whole number from 1 to 65536"),
        ({"model": M, "method": {"dropout": 1}}, "method.dropout: 1 is not a probability from 0 to below 1"),
        ({"model": M, "method": {"double_quant": "yes"}}, "method.double_quant: 'yes' is not true or false"),
        (
            {"model": M, "method": {"targets": [1]}},
            "method.targets: [1] is not all-linear, a list of module names such as [q_proj, v_proj] or a pattern",
        ),
        (
            {"model": M, "method": {"quantization": "fp4"}},
            "method.quantization: 'fp4' is not one of nf4, int8, gptq, awq",
        ),
        ({"model": M, "method": {"group_size": 0}}, "method.group_size: 0 is not a whole number from 1 to 1048576"),
        ({"model": M, "grad_scaler": 1}, "grad_scaler: 1 is not true or false"),
        ({"model": M, "clip_grad_norm": 0}, "clip_grad_norm: 0 is not a positive number or null"),
        ({"model": M, "clip_grad_norm": float("nan")}, "clip_grad_norm: nan is not a positive number or null"),
        ({"model": M, "steps": 0}, "steps: 0 is not a whole number from 1 to 10000"),
        ({"model": M, "sm": 8.6}, "sm: 8.6 is not a whole number from 30 to 200"),
        ({"model": M, "fsdp": 0}, "fsdp: 0 is not a whole number from 1 to 65536"),
        ({"model": M, "allocator": 4}, "allocator: 4 is not text"),
        (
            {"model": M, "device": "a100"},
            "device: 'a100' is not in the catalogue; did you mean a100-40gb or a100-80gb? (devices: ",
        ),
        ({"model": M, "device": 3}, "device: 3 is not in the catalogue"),
        (
            {"model": M, "device_memory_gib": "24Gib/s"},
            "device_memory_gib: '24Gib/s' is not a size; write 24GiB, 80GB or a number of GiB",
        ),
        (
            {"model": M, "device_memory_gib": "24Gi"},
            "device_memory_gib: '24Gi' has an unknown unit; did you mean GiB or GB? (units: B, KB, ",
        ),
        (
            {"model": M, "device_memory_gib": 0},
            "device_memory_gib: 0 is not a positive size; write 24GiB, 80GB or a number of GiB",
        ),
        ({"model": M, "device_memory_gib": "-4GiB"}, "device_memory_gib: '-4GiB' is not a positive size"),
        ({"model": M, "device_memory_gib": None}, "device_memory_gib: None is not a size"),
        (
            {"model": "qwen2.5-7"},
            "model: 'qwen2.5-7' is not in the catalogue; did you mean qwen2.5-7b or qwen2.5-72b? (`memsim models` "
            "lists the names; ",
        ),
        (
            {"model": "Qwen/Qwen2.5-7B-Instrct"},
            "model: 'Qwen/Qwen2.5-7B-Instrct' is neither in the catalogue nor in the Hugging Face cache (",
        ),
        (
            {"model": "gemma3-12b"},
            "model: 'gemma3-12b' is not in the catalogue; Gemma 3 from 4B on is a vision-language model: its ",
        ),
        (
            {"model": {**LLAMA, "model_type": "gemma3", "vision_config": {"hidden_size": 1152}}},
            "model.vision_config: gemma3 is more than a language model: its text_config, given as a config, is ",
        ),
        ({"model": "no/config.json"}, "model: 'no/config.json' is no such file"),
        ({"model": 5}, "model: 5 is not a model; give a name, the path of a Hugging Face config.json, or its fields"),
        ({"model": {}}, "model.model_type: missing; give the family, such as model_type: qwen2"),
        (
            {"model": {**LLAMA, "num_key_value_heads": 8}},
            "model.num_key_value_heads: 8 is more than the 4 of num_attention_heads",
        ),
        (
            {"model": {**LLAMA, "num_key_value_heads": 3}},
            "model.num_key_value_heads: 3 does not divide the 4 of num_attention_heads",
        ),
        (
            {"model": {**LLAMA, "hidden_size": 258}},
            "model.num_attention_heads: 4 does not divide the 258 of hidden_size; give head_dim or another number "
            "of heads",
        ),
        ({"model": {**LLAMA, "hidden_size": 0}}, "model.hidden_size: 0 is not a positive whole number"),
        ({"model": {**LLAMA, "vocab_size": -5}}, "model.vocab_size: -5 is not a positive whole number"),
        ({"model": {**LLAMA, "num_hidden_layers": "2"}}, "model.num_hidden_layers: '2' is not a positive whole number"),
        (
            {"model": {**LLAMA, "num_key_value_head": 2}},
            "model.num_key_value_head: unknown key; did you mean num_key_value_heads?",
        ),
        (
            {"model": {"model_type": "gpt2", "n_embd": 10, "n_head": 3}},
            "model.num_attention_heads: 3 does not divide the 10 of hidden_size",
        ),
    ],
)
def test_one_line_says_what_is_wrong(data: dict[str, object], line: str) -> None:
    assert refused(**data).startswith(line)


def test_many_wrong_keys_are_counted() -> None:
    line = refused(**{"model": M, **{f"key{number}": 1 for number in range(20)}})
    assert line.endswith("; and 12 more") and line.count("unknown key") == 8


def test_keys_of_set_and_of_a_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: qwen2.5-7b\nbatch: {size: 0}\n")
    with pytest.raises(InputError) as error:
        Run.load(path, set=["steps=0"])
    assert str(error.value) == (
        f"{path}: batch.size: 0 is not a whole number from 1 to 1048576; and --set: steps: 0 is not a whole number "
        "from 1 to 10000"
    )


def test_a_head_size_of_its_own_need_not_divide() -> None:
    assert Run(model={**LLAMA, "hidden_size": 258, "head_dim": 64}).config["head_dim"] == 64


def test_long_values_are_cut() -> None:
    assert len(refused(model="x" * 10_000)) < 300
    assert len(refused(**{"model": M, "y" * 10_000: 1})) < 400


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: qwen2.5-7b\nbatch: {size: none}\n")
    with pytest.raises(InputError) as error:
        Run.load(path)
    assert str(error.value) == f"{path}: batch.size: 'none' is not a whole number from 1 to 1048576"
    path.write_text("model: ./config.json\n")
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_key_value_heads": 8}))
    with pytest.raises(InputError) as error:
        Run.load(path)
    assert str(error.value) == (
        f"{path}: model: {tmp_path / 'config.json'}: num_key_value_heads: 8 is more than the 4 of num_attention_heads"
    )
    for content, says in (
        ("[1]", "not a Hugging Face config"),
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ):
        (tmp_path / "config.json").write_text(content, encoding="latin-1" if content == "\xff" else "utf-8")
        with pytest.raises(InputError) as error:
            Run.load(path)
        assert (says in str(error.value) or "not text in UTF-8" in str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("batch.size", "--set 'batch.size': write KEY=VALUE, such as batch.sequence=4096"),
        ("=4", "--set '=4': write KEY=VALUE"),
        ("batch..size=4", "--set 'batch..size=4': write KEY=VALUE"),
        ("batch.size=0", "--set: batch.size: 0 is not a whole number"),
        ("batch.size=[", "--set batch.size: not valid YAML"),
        ("batch.size.x=1", "--set: batch.size.x: batch.size is 1, which has no keys"),
        (
            "model.hidden_size=1",
            "--set: model.num_attention_heads: 64 does not divide the 1 of hidden_size; give head_dim or another",
        ),
        ("model.num_hidden_layer=1", "--set: model.num_hidden_layer: unknown key; did you mean num_hidden_layers?"),
        ("model.rope.theta=1", "--set: model.rope.theta: model is 'qwen2.5-72b', which has no keys"),
        ("batch.sise=4", "--set: batch.sise: unknown key; did you mean batch.size?"),
        ("method=lora", "--set: method: 'lora' is not a mapping; write method: {kind: lora}"),
        ("model=qwen2.5-71b", "--set: model: 'qwen2.5-71b' is not in the catalogue; did you mean "),
    ],
)
def test_a_wrong_set_is_named_so(change: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        Run.load("qwen2.5-72b-lora", set=["batch.size=1", change])
    assert str(error.value).startswith(line)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    for source, says in (
        (
            "qwen2.5-72b-lroa",
            "'qwen2.5-72b-lroa': neither a file nor a name of the catalogue; did you mean qwen2.5-72b-lora? (runs: ",
        ),
        ("nothing-like-it", "'nothing-like-it': neither a file nor a name of the catalogue (runs: "),
        ("x/y.yaml", "x/y.yaml: no such file; give a YAML file or one of the runs "),
        (tmp_path, f"{tmp_path}: is a folder, not a file"),
        ("a\0b", "'a\\x00b': neither a file nor a name"),
        ("x" * 5000, "'xxxx"),
    ):
        with pytest.raises(InputError) as error:
            Run.load(source)
        assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_files_that_are_not_text_or_too_large(tmp_path: Path) -> None:
    for content, says in (
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"a" * (2**20 + 1), "larger than 1 MiB, which no run or config is"),
        (b"[" * 5000, "nested more than 32"),
    ):
        path = tmp_path / "run.yaml"
        path.write_bytes(content + (b"]" * 5000 if content.startswith(b"[") else b""))
        with pytest.raises(InputError, match=says):
            Run.load(path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: gpt2")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError) as error:
        Run.load(path)
    assert str(error.value) == f"{path}: cannot be read: permission denied"


def test_heads_of_a_llama_divide_its_hidden_size() -> None:
    with pytest.raises(InputError, match="3 heads do not divide hidden_size 256, which LlamaConfig asks for"):
        simulate(Run(model={**LLAMA, "num_attention_heads": 3, "head_dim": 64}))


@pytest.mark.parametrize(("kind", "asks"), [("gemma2", "Gemma2Config"), ("gemma3_text", "Gemma3TextConfig")])
def test_heads_of_a_gemma_divide_its_hidden_size(kind: str, asks: str) -> None:
    with pytest.raises(InputError, match=f"3 heads do not divide hidden_size 256, which {asks} asks for"):
        simulate(
            Run(
                model={**LLAMA, "model_type": kind, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64},
                attention="eager",
            )
        )


def test_no_targets_adapt_nothing() -> None:
    with pytest.raises(
        InputError,
        match=r"^method.targets: \[\] adapts nothing; names of modules do, or method.target_parameters " r"beside it$",
    ):
        simulate(Run(model=LLAMA, method={"kind": "lora", "targets": []}))
