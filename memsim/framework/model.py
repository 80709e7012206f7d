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
    """A weight or buffer. `name` is its path within its block ("self_attn.q_proj.weight"), `module` the kind of module
    that it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    buffer: bool = False
    adapter: bool = False
    module: str = ""  # "linear", "embedding", "norm", "adapter"
    quantized: str = (
        # "nf4", "nf4-double" with quantized scales, "int8", "gptq:128" in groups. The stored tensor is packed, and
        # `dtype` is that of the computation.
        ""
    )
    # the dtype to which it was cast first, before adapters were made, where it was cast back afterwards
    cast_twice: str = ""
    own_class: bool = False  # its linear module is not nn.Linear itself, but of a class that inherits from it
    in_first: bool = False  # weights of stacked experts are [E, in, out]
    created_dtype: str = ""  # the dtype in which it was made, where it was cast after the model was wrapped

    @property
    def elements(self) -> int:
        """Number of elements, from the shape."""
        return math.prod(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements of its tensor; NF4 packs two in one. Weights in buffers, as those of GPTQ
        and AWQ, count 0.
        """
        if ":" in self.quantized:
            return 0
        return -(-self.elements // 2) if self.quantized.startswith("nf4") else self.elements

    @property
    def is_experts(self) -> bool:
        """Whether it stacks the weights of all experts of a layer: [E, out, in], or [E, in, out]."""
        return ".experts." in f".{self.name}" and len(self.shape) == 3 and not self.adapter

    @property
    def nbytes(self) -> int:
        """Size in bytes in `dtype`, unpacked."""
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """Says how consecutive layers, taken as one, are kept for backward (passes/checkpoint.py)."""

    layers: int = 1
    how: str = "none"  # or full, reentrant, selective, megatron, offload
    saves: frozenset[str] = frozenset()  # kinds of operators whose results a selective checkpoint keeps


@dataclass(frozen=True)
class Tower:
    """Consecutive layers that one operator "layers" runs, where a model has several such operators: T5's encoder and
    its decoder.
    """

    name: str
    layers: int
    after: tuple[Parameter, ...] = ()  # parameters between these layers and the next tower's


@dataclass(frozen=True)
class Model:
    """A model's parameters, layer graphs and settings. `outer` is everything but the layers, which stand in it as one
    operator of kind "layers", or as one for each tower.
    """

    before: tuple[Parameter, ...]  # in module order: ahead of the layers,
    layers: tuple[tuple[Parameter, ...], ...]  # for each distinct kind of layer,
    after: tuple[Parameter, ...]  # and after them
    pattern: tuple[int, ...]  # kind of each layer
    outer: LayerGraph
    layer_graphs: tuple[LayerGraph, ...]
    settings: Settings
    towers: tuple[Tower, ...] = ()  # in the order of `pattern`; empty: all layers are one
    # The kinds of layers make the same requests, and differ only in which of their inputs they read.
    alike: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()  # those of all layers, in order; empty: none
    inputs_require_grad: bool = False
    # inputs of a layer that a checkpoint keeps, in the order in which it releases them
    hold_inputs: tuple[str, ...] = ()
    head: str = "lm_head"  # the module of the output embeddings; empty where there is none
    approximate: str = ""  # what in the model is not held against recordings, in words
    positional: int = 1  # number of those at the end of hold_inputs that are not keyword arguments

    def by_reference(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Divides hold_inputs into those that a reentrant checkpoint's node holds until the graph goes, and those that
        it saves, which are tensors among its arguments.
        """
        names = self.hold_inputs
        if self.settings.stack.checkpoints_positional_arguments:  # a tuple of two stands last
            at = names.index("sin") if "sin" in names else len(names)
            return names[at:], names[:at]
        return names[: -self.positional], names[: -self.positional - 1 : -1]

    @property
    def checkpointed(self) -> bool:
        """True if every layer is checkpointed by itself and keeps its inputs only."""
        return bool(self.checkpoints) and all(
            c.layers == 1 and c.how in ("full", "reentrant") for c in self.checkpoints
        )

    def by_layer(self) -> list[tuple[Checkpoint, int]]:
        """Returns for each layer the checkpoint that it is in, and its place there."""
        rows = self.checkpoints or (Checkpoint(),) * len(self.pattern)
        return [(c, i) for c in rows for i in range(c.layers)]

    def spans(self) -> list[range]:
        """Returns the layers of each tower."""
        spans, at = [], 0
        for count in [tower.layers for tower in self.towers] or [len(self.pattern)]:
            spans.append(range(at, at + count))
            at += count
        return spans

    def frozen_towers(self) -> frozenset[int]:
        """Returns the towers in whose layers nothing trains."""
        trains = [any(p.trainable and not p.buffer for p in kind) for kind in self.layers]
        return frozenset(
            number for number, span in enumerate(self.spans()) if not any(trains[self.pattern[i]] for i in span)
        )

    def only(self, kept: Sequence[int]) -> Model:
        """Returns the model with only these layers. `kept` never divides layers that are checkpointed as one."""
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
        """Returns the parameters of no layer, in module order."""
        return (*self.before, *(p for tower in self.towers for p in tower.after), *self.after)

    def batch_bytes(self) -> dict[str, int]:
        """Returns the size in bytes of each tensor of a batch, in the order in which they are made: tokens or pixels,
        an attention mask where there is padding, and labels where they are not the tokens themselves.
        """
        sizes = {name: spec.nbytes for name, spec in self.outer.inputs.items()}
        if self.settings.padded:
            first, *rest = sizes
            tokens = sizes[first]
            mask = {"attention_mask": tokens}
            return {first: tokens, **mask, **({name: sizes[name] for name in rest} or {"labels": tokens})}
        return sizes

    def map_parameters(self, change: Callable[[Parameter], Parameter]) -> Model:
        """Returns the model with every parameter replaced."""
        return replace(
            self,
            before=tuple(map(change, self.before)),
            layers=tuple(tuple(map(change, kind)) for kind in self.layers),
            after=tuple(map(change, self.after)),
            towers=tuple(replace(tower, after=tuple(map(change, tower.after))) for tower in self.towers),
        )

    def in_order(self) -> list[tuple[int, Parameter]]:
        """Returns (layer or -1, parameter) for the whole model in module order."""
        rows = [(-1, p) for p in self.before]
        between = [tower.after for tower in self.towers] or [()]
        for span, after in zip(self.spans(), between, strict=True):
            for i in span:
                rows += [(i, p) for p in self.layers[self.pattern[i]]]
            rows += [(-1, p) for p in after]
        return rows + [(-1, p) for p in self.after]

    def count(self, trainable: bool = False) -> int:
        """Number of (trainable) parameters as PyTorch counts them: tied ones once, and 4-bit ones packed, two in one
        element.
        """
        kinds = [sum(p.numel for p in kind if not p.buffer and (p.trainable or not trainable)) for kind in self.layers]
        outer = sum(p.numel for p in self.outside() if not p.buffer and (p.trainable or not trainable))
        return outer + sum(kinds[kind] for kind in self.pattern)
