"""The jobs that the sources of published figures ran, as Runs. One source's code is the one that memsim models; for the
others the nearest run that it can simulate stands.

A row that does not determine a Run raises Unsupported with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memsim.errors import Unsupported

Row = Mapping[str, Any]

# fms-acceleration's plugins, and who casts the parameters that QLoRA does not quantize: TRL's trainer; with the plugin
# nobody (framework_plugin_bnb.py).
PLUGINS = {"none": "peft", "baseline-peft-bnb": "trl", "accelerated-peft-bnb": "none"}
# Hugging Face id → catalogue name, and fields that the measured code set. FlashAttention received packed sequences,
# which have no mask and reach no window.
MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "mistralai/Mistral-7B-v0.1": ("mistral-7b", {"vocab_size": 32000, "sliding_window": None}),
    "meta-llama/Llama-2-7b-hf": ("llama2-7b", {}),
    "meta-llama/Llama-2-13b-hf": ("llama2-13b", {}),
    "meta-llama/Meta-Llama-3-8B": ("llama3-8b", {}),
    "meta-llama/Meta-Llama-3.1-8B": ("llama3.1-8b", {}),
    "meta-llama/Llama-3.2-1B": ("llama3.2-1b", {}),
    "meta-llama/Llama-3.2-3B": ("llama3.2-3b", {}),
    "unsloth/Mistral-7B-v0.2": ("mistral-7b", {"vocab_size": 32000, "sliding_window": None}),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": ("tinyllama-1.1b", {}),
    "google/gemma-2b": ("gemma-2b", {}),
    "google/gemma-7b": ("gemma-7b", {}),
    "google/gemma-2-2b": ("gemma2-2b", {}),
    "google/gemma-2-9b": ("gemma2-9b", {}),
    "microsoft/phi-2": ("phi-2", {}),
    "microsoft/phi-1_5": (
        "phi-2",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "partial_rotary_factor": 0.5},
    ),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3-mini", {}),
    "stabilityai/stablelm-base-alpha-3b": (
        "pythia-6.9b",
        {
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "vocab_size": 50688,
        },
    ),
    "google-bert/bert-large-uncased": ("bert-large-uncased", {}),
    "tiiuae/falcon-7b": ("falcon-7b", {}),
}
# LitGPT's names of layers → Hugging Face's, by model_type where they are not Llama's.
LLAMAS = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "projection": "o_proj",
    "mlp": "gate_proj,up_proj,down_proj",
    "head": "lm_head",
}
LAYERS: Mapping[str, Mapping[str, str]] = {
    "falcon": {
        **dict.fromkeys(("query", "key", "value"), "query_key_value"),
        "projection": "dense",
        "mlp": "dense_h_to_4h,dense_4h_to_h",
        "head": "lm_head",
    },
    "phi": {**LLAMAS, "projection": "dense", "mlp": "fc1,fc2"},
    "phi3": {**LLAMAS, **dict.fromkeys(("query", "key", "value"), "qkv_proj"), "mlp": "gate_up_proj,down_proj"},
    "gpt_neox": {
        **dict.fromkeys(("query", "key", "value"), "query_key_value"),
        "projection": "dense",
        "mlp": "dense_h_to_4h,dense_4h_to_h",
        "head": "embed_out",
    },
}
# Qwen's first generation: (hidden size, layers, heads, inner size of an MLP's half, vocabulary), from its config.json.
# The nearest code is Qwen2's.
QWEN: Mapping[str, tuple[int, int, int, int, int]] = {
    "Qwen/Qwen-1_8B": (2048, 24, 16, 5504, 151936),
    "Qwen/Qwen-7B": (4096, 32, 32, 11008, 151936),
    "Qwen/Qwen-14B": (5120, 40, 40, 13696, 152064),
}


@dataclass(frozen=True)
class Source:
    """A source of figures: the beginning of its rows' `source`, the Run of a row, and how its code and
    memsim's differ.
    """

    begins: str
    run: Callable[[Row], dict[str, Any]]
    differs: str = ""  # empty: memsim models that code


def model_of(row: Row) -> dict[str, Any]:
    """Returns the config fields of the row's model."""
    from memsim.catalog import models

    if row["hf_id_or_dims"] not in MODELS or MODELS[row["hf_id_or_dims"]][0] not in models():
        raise Unsupported(f"model: {row['hf_id_or_dims']} is not in the catalogue")
    name, fields = MODELS[row["hf_id_or_dims"]]
    return {**models()[name], **fields}


def batch_of(row: Row) -> dict[str, Any]:
    """Returns the row's batch. Of the micro-batches accumulated in a step, two show all that more would."""
    if not row["micro_batch"] or not row["seq_len"]:
        raise Unsupported("does not say the batch")
    return {"size": row["micro_batch"], "sequence": row["seq_len"], "accumulation": min(int(row["grad_accum"] or 1), 2)}


def checkpointing_of(row: Row) -> str:
    """Returns the row's checkpointing."""
    said = str(row["checkpointing"])
    return "none" if said in ("none", "None") else "full"


def fms_acceleration(row: Row) -> dict[str, Any]:
    """Returns the Run of fms-hf-tuning's trainer around Hugging Face's code (stack hf-4.48)."""
    framework = str(row["framework"])
    plugin = re.search(r"fms-acceleration \[([^\]]*)\]", framework)
    if plugin is None or plugin[1] not in PLUGINS:
        fused = plugin is not None and re.search("foak|liger", plugin[1])
        raise Unsupported(
            "fused kernels (fms-acceleration's foak, Liger)" if fused else "GPTQ's kernels, or another plugin"
        )
    if "transformers 4.48.1" not in framework:
        raise Unsupported("a version of transformers that is no stack of memsim's")
    method: dict[str, Any] = {"kind": "full"}
    if row["method"] != "full":
        # this model has no c_attn
        named = [target for target in str(row["targets"]).split(",") if target != "c_attn"]
        method = {"kind": "qlora" if "QLoRA" in str(row["method"]) else "lora", "rank": row["rank"], "targets": named}
        if method["kind"] == "qlora":
            method["casts"] = PLUGINS[plugin[1]]
    batch = {"size": row["micro_batch"], "sequence": row["seq_len"], "accumulation": row["grad_accum"] or 1}
    checkpointing = "full" if str(row["checkpointing"]).startswith("HF gradient checkpointing") else "none"
    return {
        "model": model_of(row),
        "method": method,
        "batch": batch,
        "precision": "bf16",
        "checkpointing": checkpointing,
        "stack": "hf-4.48",
        "addresses": "linux",
    }


def litgpt(row: Row) -> dict[str, Any]:
    """Returns the Run with the same model, adapters and batch in Hugging Face's code."""
    model = model_of(row)
    names = LAYERS.get(str(model["model_type"]), LLAMAS)
    targets = dict.fromkeys(name for layer in str(row["targets"]).split(",") for name in names[layer].split(","))
    quantized = "QLoRA" in str(row["method"])
    method: dict[str, Any] = {"kind": "qlora" if quantized else "lora", "rank": row["rank"], "targets": [*targets]}
    if quantized:
        method |= {"double_quant": "dq" in str(row["method"]), "casts": "none"}
    return {
        "model": model,
        "method": method,
        "batch": batch_of(row),
        "attention": "eager" if model["model_type"] == "gemma2" else "sdpa",
        "checkpointing": checkpointing_of(row),
        "optimizer": "paged-adamw" if quantized else "adamw",
    }


def torchtune(row: Row) -> dict[str, Any]:
    """Returns the Run of full_finetune_single_device in Hugging Face's code. Its rows with torch.compile and chunked
    losses are not determined.
    """
    if "PagedAdamW, optimizer_in_bwd" not in str(row["optimizer"]):
        raise Unsupported("torch.compile, chunked cross entropy and activation offloading by streams")
    run = {"model": model_of(row), "method": {"kind": "full"}, "batch": batch_of(row), "checkpointing": "full"}
    return {**run, "optimizer": "paged-adamw", "optimizer_in_backward": True}


def qwen(row: Row) -> dict[str, Any]:
    """Returns the Run with the same dimensions in Qwen2's code, with an adapter for each of query, key and value where
    Qwen has one for the three.
    """
    name = re.sub(r"-Chat$|-Chat-Int4$", "", str(row["hf_id_or_dims"]))
    if str(row["hf_id_or_dims"]).endswith("Int4"):
        raise Unsupported("GPTQ's kernels under DeepSpeed")
    hidden, layers, heads, inner, vocabulary = QWEN[name]
    model = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    model |= {
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]} if "trainable" in str(row["method"]) else {}
    method = {
        "kind": "lora",
        "rank": row["rank"],
        "targets": [*list(LLAMAS.values())[:4], "gate_proj", "up_proj", "down_proj"],
        "dropout": 0.05,
        **saved,
    }
    return {
        "model": model,
        "method": method,
        "batch": batch_of(row),
        "attention": "flash_attention_2",
        "checkpointing": "full",
    }


def bert(row: Row) -> dict[str, Any]:
    """Returns the Run of the documentation's BERT for sequence classification, on today's stack."""
    optimizers = {"AdamW": "adamw", "Adafactor": "adafactor", "bnb Adam8bit": "adam-8bit"}
    if row["optimizer"] not in optimizers:
        raise Unsupported("no training step: a model loaded and nothing else")
    model = {**model_of(row), "architectures": ["BertForSequenceClassification"]}
    precision = "amp-fp16" if "AMP" in str(row["precision"]) else "fp32"
    run = {
        "model": model,
        "batch": batch_of(row),
        "precision": precision,
        "attention": "eager",
        "optimizer": optimizers[row["optimizer"]],
    }
    return {**run, "grad_scaler": precision == "amp-fp16", "sm": 75}


SOURCES = (
    Source("foundation-model-stack/fms-acceleration", fms_acceleration),
    Source(
        "Lightning-AI/litgpt",
        litgpt,
        "LitGPT's own model (one product for query, key and value, logits in chunks, nothing upcast) and "
        "quantization, which keeps more; batches padded to "
        "their longest sequence, not to the length given; torch 2.1 to 2.4",
    ),
    Source(
        "https://github.com/meta-pytorch/torchtune",
        torchtune,
        "torchtune's own model and loss; the reviewer's and the author's figures differ by 2.1 GB",
    ),
    Source("pytorch/torchtune", torchtune),
    Source(
        "QwenLM/Qwen",
        qwen,
        "Qwen's own modelling code with flash-attn's fused kernels, torch 2.0; what was measured is not said",
    ),
    Source(
        "huggingface/transformers",
        bert,
        "NVML counts the CUDA context, which the same page gives as 1,343 MB, and libraries; transformers of 2022, "
        "torch 1.10",
    ),
)
