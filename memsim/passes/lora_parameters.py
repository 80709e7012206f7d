"""LoRA on parameters that belong to no Linear: the routers and stacked experts of mixtures (peft/tuners/lora/layer.py,
ParamWrapper).

While the wrapped module runs, its parameter is parametrized: when it is read, it is W + scaling · B·A, of W's size. Its
registration tries this out first, so a forward pass makes two such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, Folded
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.tensor import Tensor
from memsim.passes.patterns import fullmatch
from memsim.passes.targets import Sites, full_name, is_pattern

if TYPE_CHECKING:
    from memsim.passes.lora_settings import Lora

# peft/utils/transformers_weight_conversion.py: names of linear modules before transformers 5 → the parameters that hold
# them since.
MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
QWEN = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
CONVERTED: Mapping[str, Mapping[str, str]] = {
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN,
    "deepseek_v2": QWEN,
    "deepseek_v3": QWEN,
    "olmoe": QWEN,
    "glm4_moe": QWEN,
}
FUSED = "gate_up_proj"


def converted(lora: Lora, model_type: str) -> Lora:
    """Returns the settings as PEFT rewrites them for this family (_convert_peft_config_moe). Raises InputError for half
    of a fused pair.

    A parameter of two fused projections has twice the rank, and twice the alpha. Names that are mapped no longer stand
    for modules, wherever they are.
    """
    mapping = CONVERTED.get(model_type)
    if lora.target_parameters and lora.dropout:
        raise InputError(
            f"method.dropout: {lora.dropout} cannot be with adapters on parameters (method.target_parameters); 0.0 can"
        )
    if lora.target_parameters and lora.dora:
        raise InputError(
            "method.dora: true cannot be with adapters on parameters (method.target_parameters); false can"
        )
    if mapping is None:
        return lora
    if lora.target_parameters:
        raise Unsupported(
            f"method.target_parameters with model_type {model_type}, of which method.targets names the experts, is "
            "not supported; targets are"
        )
    if is_pattern(lora.targets):  # see `spelled_out`
        return lora
    if lora.targets == "all-linear":
        named = set(mapping)
        lora = replace(lora, excluded=frozenset(mapping))
    else:
        targets = list(lora.targets)
        olds = {
            target: next((old for old in mapping if target == old or target.endswith(f".{old}")), None)
            for target in targets
        }
        named = {old for old in olds.values() if old}
        lora = replace(lora, targets=tuple(target for target, old in olds.items() if old is None))
    ranks: dict[str, int] = {}
    for old in named:
        parameter = mapping[old]
        pair = [name for name, to in mapping.items() if to == parameter]
        if parameter == FUSED and not named.issuperset(pair):
            missing = next(name for name in pair if name not in named)
            raise InputError(f"method.targets: {old!r} needs {missing!r} beside it, as both are fused into {parameter}")
        ranks[parameter] = lora.rank * len(pair)
    if ranks and lora.dropout:
        raise InputError(
            f"method.dropout: {lora.dropout} cannot be with adapters on experts or routers "
            f"({', '.join(sorted(named))}); 0.0 can"
        )
    if ranks and lora.dora:
        raise InputError(
            f"method.dora: true cannot be with adapters on experts or routers ({', '.join(sorted(named))}); targets "
            "without them can"
        )
    return replace(lora, parameters=tuple(sorted(ranks.items())))


# Ends of the paths of parameters that their modules read once.
ADAPTABLE = ("gate_up_proj", "down_proj", "router.weight", "gate.weight")


def with_parameters(model: Model, lora: Lora, model_type: str, of_layers: Sequence[Sites]) -> tuple[Sites, ...]:
    """Returns the Sites of the layers, with the parameters beside them that target_parameters names. Raises InputError
    and Unsupported.
    """
    rows = [
        (layer, p.name, full_name(model_type, layer, p.name))
        for layer, kind in enumerate(model.pattern)
        for p in model.layers[kind]
        if not p.module
    ]
    for target in lora.target_parameters:
        found = [path for _, path, name in rows if is_end(target, name)]
        if not found:
            near = get_close_matches(target, sorted({path for _, path, _ in rows}), 1)
            hint = f"; did you mean {near[0]}?" if near else "; those of experts and routers can have adapters"
            raise InputError(
                f"method.target_parameters: {target!r} matches no parameter that belongs to no linear module, "
                f"embedding or norm{hint}"
            )
        if other := next((path for path in found if not path.endswith(ADAPTABLE)), None):
            raise Unsupported(
                f"method.target_parameters: {target!r} is {other}, which is not supported; the weights of experts and "
                "routers are"
            )
    return tuple(
        of
        | Sites(
            parameters=frozenset(
                path
                for i, path, name in rows
                if i == layer and any(is_end(target, name) for target in lora.target_parameters)
            )
        )
        for layer, of in enumerate(of_layers)
    )


def is_end(target: str, name: str) -> bool:
    """True if a target is for the parameter with this full name."""
    return name == target or name.endswith(f".{target}")


def adapts_parameters(lora: Lora) -> bool:
    """True if a parameter has an adapter of its own."""
    return bool(lora.parameters or (lora.sites and lora.sites.parameters))


def spelled_out(lora: Lora, model: Model, model_type: str) -> Lora:
    """Returns the settings with a pattern resolved to last names, as PEFT does for a family that it converts
    (_resolve_string_target_modules). A module that it matches in one layer is then targeted in all of them.
    """
    mapping = CONVERTED.get(model_type)
    if mapping is None or not is_pattern(lora.targets):
        return lora
    parameters = {full_name(model_type, layer, p.name) for layer, p in model.in_order() if not p.buffer}
    modules = {name.rsplit(".", depth)[0] for name in parameters for depth in range(1, name.count(".") + 1)}
    pattern = str(lora.targets)
    found = (name for name in (*modules, *parameters) if fullmatch(pattern, name, "method.targets"))
    names = {name.rpartition(".")[2] for name in found}
    for old, new in mapping.items():  # half of a pair that is one parameter now: looked for where that is
        containers = (name.rpartition(".")[0] for name in parameters if name.endswith(f".{new}"))
        if any(fullmatch(pattern, f"{container}.{old}", "method.targets") for container in containers):
            names.add(old)
    there = names & ({name.rpartition(".")[2] for name in modules} | mapping.keys())
    return converted(replace(lora, targets=tuple(sorted(there))), model_type) if there else lora


def rank_of(lora: Lora, name: str) -> int:
    """Rank of the adapter on the parameter with this path; 0 where it has none."""
    if lora.sites and name in lora.sites.parameters:
        return lora.rank
    return next((rank for suffix, rank in lora.parameters if name.endswith(f".{suffix}")), 0)


def adapter_parameters(lora: Lora, p: Parameter) -> list[Parameter]:
    """Returns the adapters on a parameter [E, out, in] or [out, in]. They are made after the adapters of modules."""
    rank = rank_of(lora, p.name)
    if not rank:
        return []
    experts, out, inputs = sizes(p.shape, p.in_first)
    shapes = (("lora_A", (rank * experts, inputs)), ("lora_B", (out, rank * experts)))
    return [
        Parameter(
            f"{p.name}.{name}.weight",
            shape,
            lora.dtype,
            adapter=True,
            module="parameter adapter",
            created_dtype=p.dtype,
        )
        for name, shape in shapes
    ]


def sizes(shape: Sequence[int], in_first: bool) -> tuple[int, int, int]:
    """Returns the number of experts, and of an expert's output and input features."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return (shape[0], shape[2], shape[1]) if in_first else (shape[0], shape[1], shape[2])


def folding(lora: Lora) -> Callable[[Builder, str, Tensor], Folded | None]:
    """Returns the function that wraps a parameter while its module runs."""

    def fold(b: Builder, name: str, weight: Tensor) -> Folded | None:
        rank = rank_of(lora, name)
        if not rank:
            return None
        in_first = name in b.in_first
        experts, out, inputs = sizes(weight.shape, in_first)
        weight_a = b.parameter(f"{name}.lora_A.weight", (rank * experts, inputs), lora.dtype, True)
        weight_b = b.parameter(f"{name}.lora_B.weight", (out, rank * experts), lora.dtype, True)
        folded: Folded = (
            Delta(b, weight, weight_a, weight_b)
            if experts == 1
            else Factors(b, weight, (weight_a, weight_b), lora.alpha / lora.rank, in_first)
        )
        with b.no_grad():  # the trial: its result dies unused, and its node with it
            folded.read()
        return folded

    return fold


class Delta(Folded):
    """_LoraParameterProxy, for a single matrix. The whole update is kept beside it."""

    def __init__(self, b: Builder, weight: Tensor, weight_a: Tensor, weight_b: Tensor) -> None:
        self.b, self.weight = b, weight
        self.held = [self.delta(weight_a, weight_b)]

    def delta(self, weight_a: Tensor, weight_b: Tensor) -> Tensor:
        """Runs ParamWrapper.get_delta_weight of one expert."""
        b = self.b
        delta_weight = b.op("mul_scalar", b.op("mm", weight_b, weight_a))
        return F.to(b, delta_weight, self.weight.dtype)

    def read(self) -> Tensor:
        """Returns the weight plus its update."""
        return self.b.op("add", self.weight, self.held[0])


class Factors(Folded):
    """_LoraFactorsProxy, for stacked experts [E, out, in], or [E, in, out] with `in_first`. The two factors are kept,
    and folded in by one baddbmm.
    """

    def __init__(
        self, b: Builder, weight: Tensor, factors: tuple[Tensor, Tensor], scaling: float, in_first: bool
    ) -> None:
        self.b, self.weight, self.scaling = b, weight, scaling
        experts, out, inputs = sizes(weight.shape, in_first)
        weight_a, weight_b = factors
        del factors
        rank = weight_a.shape[0] // experts
        rhs = b.op("view", weight_a, shape=(experts, rank, inputs))
        lhs = b.op("view", weight_b, shape=(out, rank, experts))
        lhs = F.transpose(b, F.transpose(b, lhs, 1, 2), 0, 1)
        if in_first:
            lhs, rhs = F.transpose(b, rhs, 1, 2), F.transpose(b, lhs, 1, 2)
        lhs = F.to(b, lhs, weight.dtype)
        rhs = F.to(b, rhs, weight.dtype)
        self.held = [lhs, rhs]

    def read(self) -> Tensor:
        """Returns the weight with the factors folded in."""
        with self.b.no_autocast():
            return self.b.op("baddbmm", self.weight, self.held[0], self.held[1], alpha=self.scaling, packs=(1, 2))


release_in_slot_order(__name__)
