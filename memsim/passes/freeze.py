"""Partial fine-tuning: selects the parameters of a model that train, by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from memsim.errors import InputError
from memsim.framework.model import Model, Parameter
from memsim.graph.layer_graph import LayerGraph

PREFIX = re.compile(r"^(model\.decoder|model|transformer|gpt_neox|bert|vit)\.")


@dataclass(frozen=True)
class Freeze:
    """Patterns of names. Only parameters that match `only` train (empty: all), and none that matches `freeze`.

    A pattern with * or ? is for the whole name ("layers.*.mlp.*"). One without is for consecutive parts of it
    ("lm_head", "layers.31", "bias").
    """

    only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


def name_of(model: Model, layer: int, p: Parameter) -> str:
    """Returns the name that patterns are for: "embed_tokens.weight", "layers.3.mlp.up_proj.weight",
    "encoder.layers.3.layer.0.SelfAttention.q.weight".
    """
    for tower, span in zip(model.towers, model.spans(), strict=False):
        if layer in span:
            return f"{tower.name}.layers.{layer - span.start}.{p.name}"
    return p.name if layer < 0 else f"layers.{layer}.{p.name}"


def is_match(pattern: str, name: str) -> bool:
    """True if a pattern is for this name. "model." at its beginning has no effect."""
    pattern = PREFIX.sub("", pattern)
    return fnmatchcase(name, pattern) if set(pattern) & set("*?[") else f".{pattern}." in f".{name}."


def frozen(
    model: Model, freeze: Freeze, build: Callable[[Callable[[str], bool | None], frozenset[int]], Model]
) -> Model:
    """Returns the model with its parameters frozen. `build` makes it anew, given which parameters of the blocks train,
    and the towers in whose layers nothing does.

    Raises InputError for a pattern without effect.
    """
    rows = [(layer, p) for layer, p in model.in_order() if not p.buffer]
    for key, patterns in (("only", freeze.only), ("freeze", freeze.freeze)):
        for pattern in patterns:
            if not any(is_match(pattern, name_of(model, layer, p)) for layer, p in rows):
                some = " and ".join(name_of(model, *row) for row in (rows[0], rows[len(rows) // 2]))
                raise InputError(f"train.{key}: {pattern!r} matches no parameter; names are such as {some}")

    def trains(layer: int, p: Parameter) -> bool:
        name = name_of(model, layer, p)
        wanted = not freeze.only or any(is_match(pattern, name) for pattern in freeze.only)
        return p.trainable and wanted and not any(is_match(pattern, name) for pattern in freeze.freeze)

    if not any(trains(layer, p) for layer, p in rows):
        raise InputError("train: nothing is left that trains")
    outer = {p.name: trains(-1, p) for p in model.outside()}
    flags_of = [{p.name: trains(i, p) for p in model.layers[kind]} for i, kind in enumerate(model.pattern)]
    still = frozenset(
        number for number, span in enumerate(model.spans()) if not any(any(flags_of[i].values()) for i in span)
    )
    # the inputs of a tower's other layers follow from its first layer
    first_of = {model.pattern[i]: flags_of[span.start] for span in model.spans() for i in span}
    kinds: dict[tuple[int, tuple[bool, ...]], int] = {}
    pattern_of = [
        kinds.setdefault((kind, tuple(flags_of[i].values())), len(kinds)) for i, kind in enumerate(model.pattern)
    ]
    layers: list[tuple[Parameter, ...]] = []
    graphs: list[LayerGraph] = []
    made = model
    for kind, flags in kinds:
        inner = {p.name: flag for p, flag in zip(model.layers[kind], flags, strict=True)}
        made = build({**outer, **first_of[kind], **inner}.get, still)
        layers.append(_flagged(model.layers[kind], inner))
        graphs.append(made.layer_graphs[kind])
    return replace(
        model,
        before=_flagged(model.before, outer),
        layers=tuple(layers),
        after=_flagged(model.after, outer),
        towers=tuple(replace(tower, after=_flagged(tower.after, outer)) for tower in model.towers),
        pattern=tuple(pattern_of),
        outer=made.outer,
        layer_graphs=tuple(graphs),
        alike=False,
    )


def _flagged(parameters: Sequence[Parameter], trains: dict[str, bool]) -> tuple[Parameter, ...]:
    return tuple(replace(p, trainable=trains[p.name]) for p in parameters)
