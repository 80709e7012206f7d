"""A model as memsim sees it: its parameters in module order, and the layer graphs of its distinct blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memsim.framework.settings import Settings
from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import LayerGraph


@dataclass(frozen=True)
class Parameter:
    """A weight or buffer; `name` is its path within its block ("self_attn.q_proj.weight"), `module` the kind of module
    it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    buffer: bool = False
    adapter: bool = False
    module: str = ""  # "linear", "embedding", "norm", "adapter"
    quantized: str = (
        # "nf4", "nf4-double" with quantized scales, "int8", "gptq:128" in groups: what is stored is packed, and this
        # dtype that of the computation
        ""
    )
    # the dtype to which it was cast first, before adapters were made, where it was cast back after
    cast_twice: str = ""
    own_class: bool = False  # of a linear module that is no nn.Linear itself, but of a class that inherits
    in_first: bool = False  # of stacked experts: [E, in, out]
    created_dtype: str = ""  # where it was made in another dtype and cast after the model was wrapped

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def numel(self) -> int:
        """Elements of its tensor, two packed in one where it is NF4; buffers, as GPTQ and AWQ have, are none."""
        if ":" in self.quantized:
            return 0
        return -(-self.elements // 2) if self.quantized.startswith("nf4") else self.elements

    @property
    def is_experts(self) -> bool:
        """Whether it stacks the weights of all experts of a layer: [E, out, in], or [E, in, out]."""
        return ".experts." in f".{self.name}" and len(self.shape) == 3 and not self.adapter

    @property
    def nbytes(self) -> int:
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """How consecutive layers are kept for backward, as one (passes/checkpoint.py)."""

    layers: int = 1
    how: str = "none"  # or full, reentrant, selective, megatron, offload
    saves: frozenset[str] = frozenset()  # kinds of operators whose results a selective one keeps


@dataclass(frozen=True)
class Tower:
    """Consecutive layers that one operator "layers" runs, where a model has several such: T5's encoder
    and its decoder.
    """

    name: str
    layers: int
    after: tuple[Parameter, ...] = ()  # parameters between these layers and the next tower's


@dataclass(frozen=True)
class Model:
    """`outer` is everything but the layers, which stand in it as an operator of kind "layers", or as one for each
    tower.
    """

    before: tuple[Parameter, ...]  # in module order: ahead of the layers,
    layers: tuple[tuple[Parameter, ...], ...]  # of each distinct kind of layer,
    after: tuple[Parameter, ...]  # and after them
    pattern: tuple[int, ...]  # kind of each layer
    outer: LayerGraph
    layer_graphs: tuple[LayerGraph, ...]
    settings: Settings
    towers: tuple[Tower, ...] = ()  # in the order of `pattern`; empty: all layers are one
    # the kinds of layers make the same requests, and differ only in which of their inputs they read
    alike: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()  # of all layers, in order; empty: none
    inputs_require_grad: bool = False
    # inputs of a layer that a checkpoint keeps, in the order in which it lets go of them
    hold_inputs: tuple[str, ...] = ()
    head: str = "lm_head"  # the module of the output embeddings; empty where there is none
    approximate: str = ""  # what of it is not held against recordings, in words
    positional: int = 1  # of those at the end of hold_inputs that are no keyword arguments

    def by_reference(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of hold_inputs those that a reentrant checkpoint's node holds until the graph goes, and those that it saves,
        tensors among its arguments.
        """
        names = self.hold_inputs
        if self.settings.stack.checkpoints_positional_arguments:  # a tuple of two stands last
            at = names.index("sin") if "sin" in names else len(names)
            return names[at:], names[:at]
        return names[: -self.positional], names[: -self.positional - 1 : -1]

    @property
    def checkpointed(self) -> bool:
        """Whether every layer is checkpointed by itself and keeps its inputs only."""
        return bool(self.checkpoints) and all(
            c.layers == 1 and c.how in ("full", "reentrant") for c in self.checkpoints
        )

    def by_layer(self) -> list[tuple[Checkpoint, int]]:
        """The checkpoint that each layer is in, and its place there."""
        rows = self.checkpoints or (Checkpoint(),) * len(self.pattern)
        return [(c, i) for c in rows for i in range(c.layers)]

    def spans(self) -> list[range]:
        """The layers of each tower."""
        spans, at = [], 0
        for count in [tower.layers for tower in self.towers] or [len(self.pattern)]:
            spans.append(range(at, at + count))
            at += count
        return spans

    def frozen_towers(self) -> frozenset[int]:
        """Towers of whose layers nothing trains."""
        trains = [any(p.trainable and not p.buffer for p in kind) for kind in self.layers]
        return frozenset(
            number for number, span in enumerate(self.spans()) if not any(trains[self.pattern[i]] for i in span)
        )

    def only(self, kept: Sequence[int]) -> Model:
        """The model with only these layers, those that are checkpointed as one whole."""
        by_layer = self.by_layer()
        return replace(
            self,
            pattern=tuple(self.pattern[i] for i in kept),
            checkpoints=tuple(by_layer[i][0] for i in kept if by_layer[i][1] == 0),
            towers=tuple(
                replace(tower, layers=sum(i in span for i in kept))
                for tower, span in zip(self.towers, self.spans(), strict=False)
            ),
        )

    def outside(self) -> tuple[Parameter, ...]:
        """Parameters of no layer, in module order."""
        return (*self.before, *(p for tower in self.towers for p in tower.after), *self.after)

    def batch_bytes(self) -> dict[str, int]:
        """The tensors of a batch in the order in which they are made: tokens or pixels, where there is padding a mask
        that tells it, and labels where these are not the tokens themselves.
        """
        sizes = {name: spec.nbytes for name, spec in self.outer.inputs.items()}
        if self.settings.padded:
            first, *rest = sizes
            tokens = sizes[first]
            mask = {"attention_mask": tokens}
            return {first: tokens, **mask, **({name: sizes[name] for name in rest} or {"labels": tokens})}
        return sizes

    def map_parameters(self, change: Callable[[Parameter], Parameter]) -> Model:
        """The model with every parameter replaced."""
        return replace(
            self,
            before=tuple(map(change, self.before)),
            layers=tuple(tuple(map(change, kind)) for kind in self.layers),
            after=tuple(map(change, self.after)),
            towers=tuple(replace(tower, after=tuple(map(change, tower.after))) for tower in self.towers),
        )

    def in_order(self) -> list[tuple[int, Parameter]]:
        """(layer or -1, parameter), the whole model in module order."""
        rows = [(-1, p) for p in self.before]
        between = [tower.after for tower in self.towers] or [()]
        for span, after in zip(self.spans(), between, strict=True):
            for i in span:
                rows += [(i, p) for p in self.layers[self.pattern[i]]]
            rows += [(-1, p) for p in after]
        return rows + [(-1, p) for p in self.after]

    def count(self, trainable: bool = False) -> int:
        """Number of (trainable) parameters as PyTorch counts them: tied ones once, 4-bit ones packed, two in one
        element.
        """
        kinds = [sum(p.numel for p in kind if not p.buffer and (p.trainable or not trainable)) for kind in self.layers]
        outer = sum(p.numel for p in self.outside() if not p.buffer and (p.trainable or not trainable))
        return outer + sum(kinds[kind] for kind in self.pattern)
