"""The software stacks that a Run may name: the versions of a framework, and all its differences from the golden ones.

This is the only place that knows versions. Models, operators and the schedule ask for a difference by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.stacks.software import Software

GOLDEN = Software("golden", torch="2.15.0", transformers="5.23.0", peft="0.21.2", bitsandbytes="0.50.2")
HF_4_48 = Software(
    "hf-4.48",
    torch="2.6.0",
    transformers="4.48.1",
    peft="0.13.2",
    bitsandbytes="0.46.1",
    held={
        "model_type": ("llama", "mistral", "qwen2", "phi3", "olmo2", "granite", "gemma2", "gpt2"),
        "method.kind": ("full", "lora", "qlora"),
        "method": ("bias", "layers", "modules_to_save", "rslora"),
        "method.quantization": ("nf4",),
        "precision": ("bf16", "fp16", "fp32", "amp-bf16", "amp-fp16"),
        "attention": ("sdpa", "eager"),
        "checkpointing": ("none", "full", "reentrant", "selective", "save", "every", "first", "offload"),
    },
    no_optimizers=("muon",),
    lacks={
        "int8": ", as PEFT 0.13.2 does not run with bitsandbytes 0.46.1",
        "muon": ", as torch 2.6 has none",
        **dict.fromkeys(("qwen3", "qwen3_moe", "gemma3_text"), ", as transformers 4.48 does not know it"),
    },
    least_sm=70,
    most_sm=90,
    keeps_cublas_workspaces=True,
    index_slices_whole_dimensions=True,
    attention_seeds_on_host=True,
    efficient_attention_seeds_on_host=True,
    flash_pads_heads_to_32=True,
    flash_partials_reversed=True,
    unaligned_bias_fails=True,
    norms_pad_chunks=True,
    norms_sum_in_one_pass=True,
    embedding_sorts_all_bits=True,
    embedding_sums_in_two_passes=True,
    unique_in_32_bits=True,
    cub_without_head=True,
    rotary_by_product=True,
    rotary_scaled_after=True,
    inv_freq_once=True,
    takes_cache_position=True,
    dense_causal_mask=True,
    sdpa_repeats_heads=True,
    sdpa_packs_no_groups=True,
    adds_matrices_by_cublas=True,
    layers_return_tuples=True,
    loss_slices_logits=True,
    checkpoints_positional_arguments=True,
    checkpoints_frozen_inputs=True,
    embedding_adapters_add_at_once=True,
    copies_modules_twice=True,
    attention_has_buffers=True,
    olmo2_as_llama=True,
    phi3_rotates_whole_heads=True,
    qlora_keeps_cache=True,
    qlora_adapters_in_fp32=True,
    qlora_input_is_frozen=True,
    bnb_computes_in_inputs_dtype=True,
    bnb_always_dequantizes=True,
)
HF_5_17 = Software(
    "hf-5.17",
    torch="2.11.0",
    transformers="5.17.0",
    peft="0.21.0",
    bitsandbytes="0.50.2",
    held={
        "model_type": (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "olmo2",
            "phi3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "granite",
            "gpt2",
            "gpt_neox",
            "glm",
            "phi",
            "bert",
            "vit",
        ),
        "method.kind": ("full", "lora", "qlora"),
        "attention": ("sdpa", "eager"),
    },
    no_optimizers=("muon",),
    keeps_cublas_workspaces=True,
    keeps_cublaslt_workspaces=True,
    large_cublas_workspace_on_hopper_only=True,
    efficient_attention_seeds_on_host=True,
    embedding_sorts_all_bits=True,
    norms_pad_chunks=True,
    frees_nested_graphs_at_once=True,
    sdpa_packs_no_groups=True,
    adds_matrices_by_cublas=True,
    rotary_by_product=True,
)
SAME = ("torch", "transformers", "peft")  # the packages by which a recording's stack is known


def stack_of_versions(versions: Mapping[str, str]) -> Software | None:
    """Returns the stack with these versions of whichever of SAME are named, without build tags such as +cu130; None
    where there is none.
    """
    named = {name: str(versions[name]).partition("+")[0] for name in SAME if name in versions}
    return next(
        (stack for stack in STACKS.values() if all(stack.versions[name] == version for name, version in named.items())),
        None,
    )


STACKS: Mapping[str, Software] = {stack.name: stack for stack in (GOLDEN, HF_5_17, HF_4_48)}
