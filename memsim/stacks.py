"""The software stacks that a Run may name: the versions of a framework, and everything in which they differ from the golden ones.

This is the only place that knows versions. Models, operators and the schedule ask for a difference by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Software:
    """A stack: versions, and differences. A difference's default is what the golden stack does; MEANING says each in words."""

    name: str
    torch: str
    transformers: str
    peft: str
    bitsandbytes: str
    families: tuple[str, ...] | None = None  # model types held against recordings; None: all that memsim has
    optimizers: tuple[str, ...] | None = None
    least_sm: int = 75  # compute capability times ten that the wheels of torch hold code for

    keeps_cublas_workspaces: bool = False
    index_slices_whole_dimensions: bool = False
    attention_seeds_on_host: bool = False
    norms_pad_chunks: bool = False
    embedding_sorts_all_bits: bool = False
    unique_in_32_bits: bool = False
    cub_without_head: bool = False
    flash_pads_heads_to_32: bool = False
    flash_partials_reversed: bool = False
    rotary_by_product: bool = False
    inv_freq_copies: bool = True
    dense_causal_mask: bool = False
    sdpa_repeats_heads: bool = False
    loss_slices_logits: bool = False
    layers_return_tuples: bool = False
    takes_cache_position: bool = False
    checkpoints_positional_arguments: bool = False
    olmo2_as_llama: bool = False
    phi3_rotates_whole_heads: bool = False

    @property
    def versions(self) -> dict[str, str]:
        """Package → version."""
        return {"torch": self.torch, "transformers": self.transformers, "peft": self.peft, "bitsandbytes": self.bitsandbytes}


MEANING: Mapping[str, str] = {
    "keeps_cublas_workspaces": "torch keeps a cuBLAS workspace for each handle and stream (the forward's thread, the backward's); else one lives for each call",
    "index_slices_whole_dimensions": "x[:, None] slices every `:`, and each such slice makes a tensor in backward; else a `:` is nothing",
    "attention_seeds_on_host": "the two seeds of fused attention are on the host without dropout; else on the device",
    "flash_pads_heads_to_32": "FlashAttention pads every head dimension to a multiple of 32; else those above 128 to one of 64",
    "flash_partials_reversed": "FlashAttention lets go of the outputs of split keys before their log-sum-exps; else after",
    "norms_pad_chunks": "the partial norms of clip_grad_norm have as many chunks for each gradient as the largest has; else their own, and a table of offsets",
    "embedding_sorts_all_bits": "the embedding's backward sorts ids by all of their 64 bits; else by those that the vocabulary needs",
    "unique_in_32_bits": "the values and offsets of CUB's UniqueByKey have 4 bytes; else 8",
    "cub_without_head": "temporaries of CUB's scan and UniqueByKey are tile descriptors alone; else with 256 bytes ahead of them",
    "rotary_by_product": "rotary angles by a matrix product; else by multiplication",
    "inv_freq_copies": "rotary embeddings keep a second copy of their frequencies on the device",
    "dense_causal_mask": "eager's mask is made of numbers, [S, S + 1]; else of booleans, after a look for packed sequences",
    "sdpa_repeats_heads": "sdpa is given copies of keys and values for every query head; else grouped heads",
    "loss_slices_logits": "the loss leaves the last token's logits out by slicing the logits; else by padding the labels",
    "layers_return_tuples": "a decoder layer returns a tuple, which holds the last layer's result while the final norm runs",
    "takes_cache_position": "positions are made once, and an argument named cache_position holds them; else twice",
    "checkpoints_positional_arguments": "a checkpointed layer's arguments are positional, and let go of in their order; else by name, and in the reverse order",
    "olmo2_as_llama": "OLMo-2's norms cast before the weight, and its rotary tables have the model's dtype, as Llama's; else both in fp32",
    "phi3_rotates_whole_heads": "Phi-3 rotates heads as Llama does; else the part that turns is cut off and put back",
}

GOLDEN = Software("golden", torch="2.15.0", transformers="5.23.0", peft="0.21.2", bitsandbytes="0.50.2")
HF_4_48 = Software(
    "hf-4.48",
    torch="2.6.0",
    transformers="4.48.1",
    peft="0.13.2",
    bitsandbytes="0.46.1",
    families=("llama", "mistral", "qwen2", "phi3", "olmo2"),
    keeps_cublas_workspaces=True,
    index_slices_whole_dimensions=True,
    attention_seeds_on_host=True,
    norms_pad_chunks=True,
    embedding_sorts_all_bits=True,
    unique_in_32_bits=True,
    cub_without_head=True,
    flash_pads_heads_to_32=True,
    flash_partials_reversed=True,
    rotary_by_product=True,
    inv_freq_copies=False,
    dense_causal_mask=True,
    sdpa_repeats_heads=True,
    loss_slices_logits=True,
    layers_return_tuples=True,
    takes_cache_position=True,
    checkpoints_positional_arguments=True,
    olmo2_as_llama=True,
    phi3_rotates_whole_heads=True,
)
SAME = ("torch", "transformers", "peft")  # the packages by which a recording's stack is known


def stack_of_versions(versions: Mapping[str, str]) -> Software | None:
    """The stack with these versions of whichever of SAME are named, build tags such as +cu130 aside; None where there is none."""
    named = {name: str(versions[name]).partition("+")[0] for name in SAME if name in versions}
    return next((stack for stack in STACKS.values() if all(stack.versions[name] == version for name, version in named.items())), None)


def differences(stack: Software) -> dict[str, str]:
    """What a stack does otherwise than the golden one: name → meaning."""
    return {name: meaning for name, meaning in MEANING.items() if getattr(stack, name) != getattr(GOLDEN, name)}


STACKS: Mapping[str, Software] = {stack.name: stack for stack in (GOLDEN, HF_4_48)}
