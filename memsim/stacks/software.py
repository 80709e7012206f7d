"""The record of a software stack: versions of the framework, and its possible differences from the golden one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Difference → its subject, what a stack with it does, what one without it does.
MEANING: Mapping[str, tuple[str, str, str]] = {
    "keeps_cublas_workspaces": (
        "cuBLAS workspace",
        "one kept for each thread (forward's, backward's)",
        "lives for a call",
    ),
    "keeps_cublaslt_workspaces": ("cuBLASLt workspace", "kept as cuBLAS's is, which comes first", "lives for a call"),
    "large_cublas_workspace_on_hopper_only": ("cuBLAS workspace of 32 MiB", "on Hopper alone", "on Hopper and later"),
    "index_slices_whole_dimensions": (
        "x[:, None]",
        "slices every `:`, which makes a tensor in backward",
        "a `:` does nothing",
    ),
    "attention_seeds_on_host": ("FlashAttention: seeds", "on the host", "on the device"),
    "efficient_attention_seeds_on_host": ("memory-efficient attention: seeds", "on the host", "on the device"),
    "flash_pads_heads_to_32": (
        "FlashAttention: head dimension",
        "padded to a multiple of 32",
        "above 128 to a multiple of 64",
    ),
    "flash_partials_reversed": ("FlashAttention: split keys", "outputs are freed before log-sum-exps", "after them"),
    "unaligned_bias_fails": ("memory-efficient attention's backward: a bias of unaligned rows", "fails", "is copied"),
    "norms_pad_chunks": (
        "clip_grad_norm: partial norms",
        "as many for each gradient as for the largest",
        "its own, and a table of offsets",
    ),
    "norms_sum_in_one_pass": (
        "LayerNorm's backward of many rows",
        "in one pass",
        "sums over thread blocks, then their sum",
    ),
    "frees_nested_graphs_at_once": (
        "graph of many nodes written in Python",
        "ends at once",
        "its depth is put off until the loss is gone",
    ),
    "embedding_sorts_all_bits": (
        "embedding's backward: ids sorted by",
        "all 64 bits",
        "the bits that the vocabulary needs",
    ),
    "embedding_sums_in_two_passes": ("embedding's backward: few rows", "in two passes, as many", "by atomic additions"),
    "unique_in_32_bits": ("CUB's UniqueByKey: values, offsets", "4 bytes", "8 bytes"),
    "cub_without_head": (
        "CUB's scan and UniqueByKey: temporaries",
        "tile descriptors",
        "256 bytes, then tile descriptors",
    ),
    "rotary_by_product": ("rotary angles", "by a matrix product", "by multiplication"),
    "rotary_scaled_after": ("rotary tables: cosines", "scaled once the sines are made", "scaled at once"),
    "inv_freq_once": ("rotary frequencies", "once on the device", "twice"),
    "takes_cache_position": ("positions", "made once, held as cache_position", "made twice"),
    "dense_causal_mask": ("causal mask", "numbers, [S, S + 1]", "booleans, after a look for packed sequences"),
    "sdpa_repeats_heads": ("sdpa: keys and values", "copied for every query head", "grouped heads"),
    "sdpa_packs_no_groups": (
        "sdpa of one token with a mask",
        "repeats keys and values",
        "packs a group's queries as a sequence",
    ),
    "adds_matrices_by_cublas": ("torch.addmm of matrices", "by cuBLAS", "by cuBLASLt"),
    "layers_return_tuples": ("last layer's result", "stays in a tuple while the final norm runs", "does not"),
    "loss_slices_logits": ("loss: shift", "slices the last token off the logits", "pads the labels"),
    "checkpoints_positional_arguments": (
        "checkpoint: a layer's arguments",
        "positional; die in their order",
        "by name; die in reverse",
    ),
    "checkpoints_frozen_inputs": (
        "checkpoint: frozen embeddings",
        "stay as they are",
        "are told to require a gradient",
    ),
    "embedding_adapters_add_at_once": (
        "LoRA of embeddings: the adapter's output",
        "goes once it is added",
        "lives until the module is done",
    ),
    "copies_modules_twice": (
        "modules_to_save: copies are made",
        "with the adapters, and once more after them",
        "after them",
    ),
    "attention_has_buffers": ("GPT-2: causal mask and its number", "buffers of every layer", "made for all layers"),
    "olmo2_as_llama": ("OLMo-2: weight of norms, rotary tables", "in the model's dtype, as Llama's", "in fp32"),
    "phi3_rotates_whole_heads": (
        "Phi-3: rotation of heads",
        "whole, as Llama's",
        "the part that turns is cut off and put back",
    ),
    "qlora_keeps_cache": ("QLoRA: once parameters are cast to fp32", "the cache stays", "it is emptied"),
    "qlora_adapters_in_fp32": ("QLoRA: adapters are made", "in fp32", "in the compute dtype, then cast"),
    "qlora_input_is_frozen": ("QLoRA with checkpointing: embeddings", "require no gradient", "are told to require one"),
    "bnb_computes_in_inputs_dtype": (
        "bitsandbytes: 4-bit products compute in",
        "the dtype of the module's first input",
        "bnb_4bit_compute_dtype",
    ),
    "bnb_always_dequantizes": (
        "bitsandbytes: 4-bit products",
        "dequantize the weight, then F.linear",
        "or a fused kernel, by shape and device",
    ),
}


@dataclass(frozen=True)
class Software:
    """A stack: versions, and differences. The golden one has no difference. MEANING says in words what each difference
    is.
    """

    name: str
    torch: str
    transformers: str
    peft: str
    bitsandbytes: str
    # key of a Run → values held against recordings; other keys: all that memsim has
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    no_optimizers: tuple[str, ...] = ()  # names of those that it is not held to; it is held to all others
    # value of a key → why it is not held, where the stack itself lacks it
    lacks: Mapping[str, str] = field(default_factory=dict)
    python: str = "3.11"  # Python that trains; its order of release is in every lifetime (docs/lifetimes.md)
    # Compute capability times ten. torch's wheels hold no code for older and newer devices, or it is not modelled.
    least_sm: int = 75
    most_sm: int | None = None

    # Differences, by what they change: torch's operators, transformers' code around the layers, checkpoints, families.
    keeps_cublas_workspaces: bool = False
    keeps_cublaslt_workspaces: bool = False
    large_cublas_workspace_on_hopper_only: bool = False
    index_slices_whole_dimensions: bool = False
    attention_seeds_on_host: bool = False
    efficient_attention_seeds_on_host: bool = False
    flash_pads_heads_to_32: bool = False
    flash_partials_reversed: bool = False
    unaligned_bias_fails: bool = False
    norms_pad_chunks: bool = False
    norms_sum_in_one_pass: bool = False
    frees_nested_graphs_at_once: bool = False
    embedding_sorts_all_bits: bool = False
    embedding_sums_in_two_passes: bool = False
    unique_in_32_bits: bool = False
    cub_without_head: bool = False
    rotary_by_product: bool = False
    rotary_scaled_after: bool = False
    inv_freq_once: bool = False
    takes_cache_position: bool = False
    dense_causal_mask: bool = False
    sdpa_repeats_heads: bool = False
    sdpa_packs_no_groups: bool = False
    adds_matrices_by_cublas: bool = False
    layers_return_tuples: bool = False
    loss_slices_logits: bool = False
    checkpoints_positional_arguments: bool = False
    checkpoints_frozen_inputs: bool = False
    embedding_adapters_add_at_once: bool = False
    copies_modules_twice: bool = False
    attention_has_buffers: bool = False
    olmo2_as_llama: bool = False
    phi3_rotates_whole_heads: bool = False
    qlora_keeps_cache: bool = False
    qlora_adapters_in_fp32: bool = False
    qlora_input_is_frozen: bool = False
    bnb_computes_in_inputs_dtype: bool = False
    bnb_always_dequantizes: bool = False

    def runs_on(self, sm: int) -> bool:
        """True if it is modelled on devices of this compute capability, times ten."""
        return sm >= self.least_sm and (self.most_sm is None or sm <= self.most_sm)

    @property
    def devices(self) -> str:
        """Compute capabilities that it is modelled on, in words."""
        return f"{self.least_sm} and later" if self.most_sm is None else f"{self.least_sm} to {self.most_sm}"

    @property
    def versions(self) -> dict[str, str]:
        """Package → version."""
        return {
            "torch": self.torch,
            "transformers": self.transformers,
            "peft": self.peft,
            "bitsandbytes": self.bitsandbytes,
        }
