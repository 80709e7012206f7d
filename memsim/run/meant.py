"""What people write who mean a key or a value of a Run: names of trainers' and libraries' arguments."""

from __future__ import annotations

from collections.abc import Mapping

ONE_GPU = "memsim simulates one GPU, where nothing is sharded"
# of another key: what to write
KEYS: Mapping[str, str] = {
    "packing": "packed sequences are full ones: batch.sequence as long as they are packed, batch.padding: 0",
    "sample_packing": "packed sequences are full ones: batch.sequence as long as they are packed, batch.padding: 0",
    "deepspeed": ONE_GPU,
    "zero_stage": ONE_GPU,
    "zero_optimization": ONE_GPU,
    "stage": "ZeRO's shards over several GPUs, of which memsim simulates one; a trainer's, such as sft, needs no key",
    "tensor_parallel_size": ONE_GPU,
    "gradient_checkpointing": "write checkpointing: full, or reentrant where use_reentrant is true",
    "per_device_train_batch_size": "write batch.size",
    "micro_batch_size": "write batch.size",
    "batch_size": "write batch.size",
    "gradient_accumulation_steps": "write batch.accumulation",
    "max_seq_length": "write batch.sequence",
    "max_seq_len": "write batch.sequence",
    "max_length": "write batch.sequence",
    "cutoff_len": "write batch.sequence",
    "sequence_len": "write batch.sequence",
    "seq_len": "write batch.sequence",
    "attn_implementation": "write attention",
    "flash_attention": "write attention: flash_attention_2",
    "bf16": "write precision: bf16 where the weights are bf16 too, amp-bf16 where they are fp32",
    "fp16": "write precision: fp16 where the weights are fp16 too, amp-fp16 where they are fp32",
    "dtype": "write precision",
    "torch_dtype": "write precision",
    "load_in_4bit": "write method.kind: qlora",
    "load_in_8bit": "write method.kind: qlora and method.quantization: int8",
    "quantization_bit": "write method.kind: qlora and method.quantization",
    "lora_r": "write method.rank",
    "lora_rank": "write method.rank",
    "r": "write method.rank",
    "lora_target": "write method.targets",
    "target_modules": "write method.targets",
    "lora_target_modules": "write method.targets",
    "lora_dropout": "write method.dropout",
    "lora_alpha": "it changes no memory",
    "alpha": "it changes no memory",
    "optim": "write optimizer",
    "max_grad_norm": "write clip_grad_norm",
    "learning_rate": "it changes no memory",
    "lr": "it changes no memory",
    "gpu": "write device",
    "max_steps": "write steps",
}
# by key: value → what it is called here
VALUES: Mapping[str, Mapping[str, str]] = {
    "attention": dict.fromkeys(
        ("fa2", "flash", "flash2", "flash_attn", "flash-attn", "flash_attention", "flash-attention-2", "fa"),
        "flash_attention_2",
    ),
    "precision": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "amp": "amp-bf16"},
    "method.quantization": dict.fromkeys(("4bit", "4", "bnb-4bit", "int4"), "nf4")
    | dict.fromkeys(("8bit", "8", "bnb-8bit"), "int8"),
}


def of_key(key: str) -> str:
    """What someone means who writes this dotted key; nothing where that is not known."""
    return KEYS.get(key.rpartition(".")[2].lower(), "")


def of_value(key: str, value: object) -> str:
    """What someone means who gives a key this value, as an error ends; nothing where that is not known."""
    found = VALUES.get(key, {}).get(str(value).lower(), "")
    return f"; did you mean {found}?" if found else ""
