"""A model as memsim sees it: its parameters in module order, and the layer graphs of its distinct blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from memsim.builder import PLAIN, Technique
from memsim.dtypes import ITEMSIZE
from memsim.graph import LayerGraph
from memsim.stacks import GOLDEN, Software


@dataclass(frozen=True)
class Parameter:
    """A weight or buffer; `name` is its path within its block ("self_attn.q_proj.weight"), `module` the kind of module it belongs to."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    buffer: bool = False
    adapter: bool = False
    module: str = ""  # "linear", "embedding", "norm", "adapter"
    quantized: str = (
        ""  # "nf4", "nf4-double" with quantized scales, "int8", "gptq:128" in groups: what is stored is packed, and this dtype that of the computation
    )
    cast_twice: str = ""  # the dtype to which it was cast first, before adapters were made, where it was cast back after
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
    def nbytes(self) -> int:
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Settings:
    """What of a Run the model's code asks for while it executes."""

    batch: int
    sequence: int
    dtype: str  # of the weights
    attention: str
    sm: int = 80
    stack: Software = GOLDEN
    technique: Technique = PLAIN
    padding: float = 0.0  # share of each sequence that is padding; the batch then comes with an attention mask, and labels of its own
    loaded: str = ""  # dtype in which the model is made, where it is cast afterwards
    watched: bool = False  # layers run under a TorchDispatchMode, that of selective checkpointing
    routing: str | float = "balanced"  # of tokens to experts: see models/moe.py
    other_order: bool = False  # the other way round, where a Python set's order decides

    @property
    def padded(self) -> bool:
        """Whether the batch comes with an attention mask that is not all ones."""
        return self.padding > 0

    @property
    def real_tokens(self) -> int:
        """Of each sequence, those that are no padding."""
        return self.sequence - math.ceil(self.padding * self.sequence)

    @property
    def created(self) -> str:
        """dtype in which the model is made, and its buffers stay."""
        return self.loaded or self.dtype


@dataclass(frozen=True)
class Checkpoint:
    """How consecutive layers are kept for backward, as one (passes/checkpoint.py)."""

    layers: int = 1
    how: str = "none"  # or full, reentrant, selective, megatron, offload
    saves: frozenset[str] = frozenset()  # kinds of operators whose results a selective one keeps


@dataclass(frozen=True)
class Model:
    """`outer` is everything but the decoder layers, which stand in it as one operator of kind "layers"."""

    before: tuple[Parameter, ...]  # in module order: ahead of the layers,
    layers: tuple[tuple[Parameter, ...], ...]  # of each distinct kind of layer,
    after: tuple[Parameter, ...]  # and after them
    pattern: tuple[int, ...]  # kind of each layer
    outer: LayerGraph
    layer_graphs: tuple[LayerGraph, ...]
    settings: Settings
    alike: bool = False  # the kinds of layers make the same requests, and differ only in which of their inputs they read
    checkpoints: tuple[Checkpoint, ...] = ()  # of all layers, in order; empty: none
    inputs_require_grad: bool = False
    hold_inputs: tuple[str, ...] = ()  # inputs of a layer that a checkpoint keeps, in the order in which it lets go of them
    positional: int = 1  # of those at the end of hold_inputs that are no keyword arguments

    def by_reference(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of hold_inputs those that a reentrant checkpoint's node holds until the graph goes, and those that it saves, tensors among its arguments."""
        names = self.hold_inputs
        if self.settings.stack.checkpoints_positional_arguments:  # a tuple of two stands last
            at = names.index("sin") if "sin" in names else len(names)
            return names[at:], names[:at]
        return names[: -self.positional], names[: -self.positional - 1 : -1]

    @property
    def checkpointed(self) -> bool:
        """Whether every layer is checkpointed by itself and keeps its inputs only."""
        return bool(self.checkpoints) and all(c.layers == 1 and c.how in ("full", "reentrant") for c in self.checkpoints)

    def by_layer(self) -> list[tuple[Checkpoint, int]]:
        """The checkpoint that each layer is in, and its place there."""
        rows = self.checkpoints or (Checkpoint(),) * len(self.pattern)
        return [(c, i) for c in rows for i in range(c.layers)]

    def map_parameters(self, change: Callable[[Parameter], Parameter]) -> Model:
        """The model with every parameter replaced."""
        return replace(
            self,
            before=tuple(map(change, self.before)),
            layers=tuple(tuple(map(change, kind)) for kind in self.layers),
            after=tuple(map(change, self.after)),
        )

    def in_order(self) -> list[tuple[int, Parameter]]:
        """(layer or -1, parameter), the whole model in module order."""
        rows = [(-1, p) for p in self.before]
        for i, kind in enumerate(self.pattern):
            rows += [(i, p) for p in self.layers[kind]]
        return rows + [(-1, p) for p in self.after]

    def count(self, trainable: bool = False) -> int:
        """Number of (trainable) parameters as PyTorch counts them: tied ones once, 4-bit ones packed, two in one element."""
        kinds = [sum(p.numel for p in kind if not p.buffer and (p.trainable or not trainable)) for kind in self.layers]
        outer = sum(p.numel for p in (*self.before, *self.after) if not p.buffer and (p.trainable or not trainable))
        return outer + sum(kinds[kind] for kind in self.pattern)
