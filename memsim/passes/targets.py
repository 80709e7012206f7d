"""The places of adapters: the modules that a method names, as PEFT finds them by their full names
(peft/tuners/tuners_utils.py, check_target_module_exists).

Lists of names mean the same in every layer and need none of this (passes/lora.py, matches). A pattern, a list of
layers, whole names and modules_to_save are resolved here. Each layer gets its own Sites, and layers with different
Sites become different kinds of layers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from memsim.errors import InputError, Unsupported
from memsim.framework.model import Model, Parameter
from memsim.graph.layer_graph import LayerGraph
from memsim.passes.patterns import fullmatch, match

HEAD = "lm_head"
HEADS = (HEAD, "cls.predictions.decoder")  # output embeddings, which "all-linear" leaves out
LINEAR = ("linear", "conv1d")  # kinds of modules that PEFT's Linear takes
WHOLE = (*LINEAR, "embedding", "norm")  # kinds of modules that can be trained as a whole
OUTER = {
    "gpt2": "transformer",
    "opt": "model.decoder",
    "gpt_bigcode": "transformer",
    "falcon": "transformer",
    "bloom": "transformer",
    "gpt_neox": "gpt_neox",
    "bert": "bert",
    "vit": "vit",
}  # model_type → the inner model's name, where it is not "model"
LAYERS = {  # model_type → the list of layers, where it is not "layers"
    "gpt2": "h",
    "gpt_bigcode": "h",
    "falcon": "h",
    "bloom": "h",
    "bert": "encoder.layer",
    "t5": "block",
}
TOP = (HEAD, "cls", "classifier")  # modules beside the inner model
PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Sites:
    """Paths within their block: of modules with adapters, of modules of which a copy trains, and of parameters with
    adapters of their own.
    """

    targets: frozenset[str] = frozenset()
    saved: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    def __or__(self, other: Sites) -> Sites:
        return Sites(self.targets | other.targets, self.saved | other.saved, self.parameters | other.parameters)


class Placing(Protocol):
    """The settings of a method that say where it goes."""

    @property
    def targets(self) -> str | Sequence[str]: ...
    @property
    def layers(self) -> tuple[int, ...] | None: ...
    @property
    def saved(self) -> tuple[str, ...]: ...


def is_pattern(targets: str | Sequence[str]) -> bool:
    """True if the targets are a regular expression for whole names."""
    return isinstance(targets, str) and targets != "all-linear"


def by_name(method: Placing) -> bool:
    """True if full names decide, so that layers may differ."""
    named = not isinstance(method.targets, str) and any("." in target for target in method.targets)
    return is_pattern(method.targets) or method.layers is not None or bool(method.saved) or named


def full_name(model_type: str, layer: int, module: str, model: Model | None = None) -> str:
    """Returns the name of a module in transformers' model: "model.layers.3.mlp.up_proj", "lm_head",
    "encoder.block.3.layer.0.SelfAttention.q".
    """
    if model is not None and model.towers:
        found = [
            (tower.name, layer - span.start)
            for tower, span in zip(model.towers, model.spans(), strict=True)
            if layer in span
        ]
        return f"{found[0][0]}.{LAYERS.get(model_type, 'layers')}.{found[0][1]}.{module}" if found else module
    outer = OUTER.get(model_type, "model")
    if layer >= 0:
        return f"{outer}.{LAYERS.get(model_type, 'layers')}.{layer}.{module}"
    return module if module.partition(".")[0] in TOP else f"{outer}.{module}"


def modules_of(parameters: Iterable[Parameter], kinds: Sequence[str]) -> list[str]:
    """Returns the paths of the modules of these kinds, in order."""
    found = (p.name.removesuffix(".weight") for p in parameters if p.module in kinds and p.name.endswith(".weight"))
    return list(dict.fromkeys(found))


def is_tied(model: Model) -> bool:
    """True if the head has no weight of its own."""
    return model.head == HEAD and not any(p.name == f"{HEAD}.weight" for p in model.after)


def places(model: Model, model_type: str, kinds: Sequence[str]) -> list[tuple[int, str, str]]:
    """Returns (layer or -1, path within its block, full name) of every module of these kinds, including a tied head."""
    rows = [(-1, module) for module in modules_of(model.before, kinds)]
    for layer, kind in enumerate(model.pattern):
        rows += [(layer, module) for module in modules_of(model.layers[kind], kinds)]
    rows += [(-1, module) for tower in model.towers for module in modules_of(tower.after, kinds)]
    rows += [(-1, module) for module in modules_of(model.after, kinds)]
    rows += [(-1, HEAD)] if is_tied(model) and "linear" in kinds else []
    return [(layer, module, full_name(model_type, layer, module, model)) for layer, module in rows]


def sites(model: Model, method: Placing, model_type: str) -> tuple[Sites, tuple[Sites, ...]]:
    """Returns the Sites outside the layers, and those of each layer. Raises InputError for a name that matches nothing,
    or that PEFT does not take.
    """
    adapted = places(model, model_type, LINEAR if method.targets == "all-linear" else (*LINEAR, "embedding"))
    chosen = {
        (layer, module)
        for layer, module, name in adapted
        if is_target(method, layer, name) and not is_saved_for_adapters(method, name)
    }
    check_targets(model, method, model_type, adapted)
    if not chosen and method.targets:
        raise InputError(
            f"method.targets: {show_targets(method.targets)} leaves no module to "
            f"adapt{' in these layers' if method.layers is not None else ''}"
        )
    copied = {
        (layer, module)
        for layer, module, name in places(model, model_type, WHOLE)
        if any(name.endswith(saved) for saved in method.saved)
    }
    check_saved(model, method, model_type)

    def of(layer: int) -> Sites:
        return Sites(frozenset(m for i, m in chosen if i == layer), frozenset(m for i, m in copied if i == layer))

    return of(-1), tuple(of(layer) for layer in range(len(model.pattern)))


def is_target(method: Placing, layer: int, name: str) -> bool:
    """True if the module with this full name is targeted."""
    if method.targets == "all-linear":
        return name not in HEADS
    if isinstance(method.targets, str):
        return fullmatch(method.targets, name, "method.targets")
    if name in method.targets:
        return True
    inside = method.layers is None or layer in method.layers
    return inside and any(name.endswith(f".{target}") for target in method.targets)


def is_saved_for_adapters(method: Placing, name: str) -> bool:
    """Whether adapters leave the module alone, as it or one around it is in modules_to_save."""
    return any(match(rf"(^|.*\.){saved}($|\..*)", name, "method.modules_to_save") for saved in method.saved)


def show_targets(targets: str | Sequence[str]) -> str:
    """Returns the targets as an error names them."""
    return repr(targets) if isinstance(targets, str) else f"[{', '.join(targets)}]"


def check_targets(model: Model, method: Placing, model_type: str, adapted: Sequence[tuple[int, str, str]]) -> None:
    """Raises InputError for a target that matches nothing, or a module that takes no adapter."""
    if method.layers is not None and (outside := [layer for layer in method.layers if layer >= len(model.pattern)]):
        raise InputError(
            f"method.layers: there is no layer {outside[0]}; the model's are 0 to {len(model.pattern) - 1}"
        )
    names = [name for _, _, name in adapted]
    short = sorted({name.rpartition(".")[2] for name in names})
    if isinstance(method.targets, str):
        if method.targets == "all-linear":
            return
        if not any(is_target(method, -1, name) for name in names):
            raise InputError(
                f"method.targets: the pattern {method.targets!r} matches no module; it is for a whole name such as "
                f"{names[len(names) // 2]}"
            )
        if found := next((name for name in containers(model, model_type) if is_target(method, -1, name)), None):
            raise InputError(
                f"method.targets: the pattern {method.targets!r} also matches {found}, which is no linear module or "
                "embedding, and PEFT refuses it"
            )
        return
    for target in method.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, short, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"method.targets: {target!r} matches no linear module{hint} (there are {', '.join(short)})"
            )


def containers(model: Model, model_type: str) -> list[str]:
    """Returns full names of modules that take no adapter: those with others inside, norms, activations."""
    every = [name for _, _, name in places(model, model_type, WHOLE)]
    found = {".".join(name.split(".")[:depth]) for name in every for depth in range(1, name.count(".") + 1)}
    found |= {f"{name}.{activation}" for name in found if name.endswith(".mlp") for activation in ("act_fn", "act")}
    found |= {name for _, _, name in places(model, model_type, ("norm",))} | {full_name(model_type, -1, "rotary_emb")}
    return sorted(found - {name for _, _, name in places(model, model_type, (*LINEAR, "embedding"))})


def check_saved(model: Model, method: Placing, model_type: str) -> None:
    """Raises InputError for a name in modules_to_save that no module ends with, and Unsupported for a module that has
    more than a weight and a bias.
    """
    whole = [name for _, _, name in places(model, model_type, WHOLE)]
    for saved in method.saved:
        if found := next(
            (name for name in containers(model, model_type) if name.endswith(saved) and name not in whole), None
        ):
            raise Unsupported(
                f"method.modules_to_save: {saved!r} is {found}, a module of modules, which is not supported; the "
                "names of those in it are"
            )
        if not any(name.endswith(saved) for name in whole):
            short = sorted({name.rpartition(".")[2] for name in whole})
            near = difflib.get_close_matches(saved, short, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"method.modules_to_save: {saved!r} matches no module{hint} (there are {', '.join(short)})"
            )


def split(model: Model, of_layers: Sequence[Sites], build: Callable[[Sites], Model]) -> tuple[Model, tuple[Sites, ...]]:
    """Returns the model with a kind of layer for each pair of kind and Sites, and the Sites of each. `build` makes the
    model with the same Sites in all layers.
    """
    kinds: dict[tuple[int, Sites], int] = {}
    pattern = tuple(kinds.setdefault((kind, of), len(kinds)) for kind, of in zip(model.pattern, of_layers, strict=True))
    made: Mapping[Sites, Model] = {of: build(of) for of in dict.fromkeys(of for _, of in kinds)}
    graphs: list[LayerGraph] = [made[of].layer_graphs[kind] for kind, of in kinds]
    outer = next(iter(made.values())).outer
    layers = tuple(model.layers[kind] for kind, _ in kinds)
    alike = model.alike and len({of for _, of in kinds}) == 1
    return replace(model, layers=layers, pattern=pattern, outer=outer, layer_graphs=tuple(graphs), alike=alike), tuple(
        of for _, of in kinds
    )
