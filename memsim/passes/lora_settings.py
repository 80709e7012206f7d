"""The settings of a LoRA run, and the modules that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memsim.passes.targets import HEADS, Sites


@dataclass(frozen=True)
class Lora:
    """Adapter settings: rank, targeted modules ("all-linear", names, or a pattern), dropout probability, and those that
    passes/lora_parameters.py adds.
    """

    rank: int
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    dtype: str = "fp32"  # PEFT's autocast_adapter_dtype keeps adapters of half-precision models in fp32
    alpha: int = 16
    excluded: frozenset[str] = frozenset()  # last names of modules that "all-linear" leaves out
    parameters: tuple[tuple[str, int], ...] = ()  # (end of its path, rank) of each parameter with an adapter of its own
    dora: bool = False
    bias: str = "none"  # which biases train: "all", or those of targeted modules, "lora_only"
    layers: tuple[int, ...] | None = None  # layers_to_transform
    saved: tuple[str, ...] = ()  # modules_to_save
    target_parameters: tuple[str, ...] = ()  # ends of full names of parameters
    unnamed_output: bool = False  # an embedding's adapter output is not kept until the module is done
    sites: Sites | None = None  # the sites of adapters, where full names decided them (passes/targets.py)


def matches(lora: Lora, module: str) -> bool:
    """True if PEFT puts an adapter on the linear module or embedding with this path (peft/tuners/tuners_utils.py,
    check_target_module_exists).
    """
    if lora.sites is not None:
        return module in lora.sites.targets and module.rpartition(".")[2] not in lora.excluded
    if lora.targets == "all-linear":
        return module not in HEADS and module.rpartition(".")[2] not in lora.excluded
    return any(module == name or module.endswith(f".{name}") for name in lora.targets)
