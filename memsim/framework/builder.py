"""Builds layer graphs from code that reads like the framework's own forward pass.

A model's function calls operators on `Tensor`s. A Tensor is a Python name's hold on a storage. When the last name goes
(a local is rebound, a function returns), the storage is noted in the `drops` of the operator that ran last. So
lifetimes in the graph are those of the framework's Python code, to the line, as long as our function has the same
locals as theirs. Both rest on CPython's reference counting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar

from memsim.framework.autocast import FLOATING, ORDER, SETS_DTYPE, target
from memsim.framework.frames import check_release, release_in_slot_order
from memsim.framework.tensor import During, Tensor
from memsim.graph.layer_graph import LayerGraph, Operator, TensorSpec
from memsim.graph.layout import contiguous
from memsim.operators import KINDS
from memsim.operators.base import Inferred

P = ParamSpec("P")
R = TypeVar("R")


Composed = Callable[["Builder", tuple[Tensor, ...], Mapping[str, object]], tuple[Tensor, ...]]
Rule = Callable[["Builder", str, tuple[Tensor, ...], Mapping[str, object]], tuple[Tensor, ...] | None]


class Folded:
    """A parameter that is computed when it is read, from the tensors that are `held` while its module runs."""

    held: list[Tensor]

    def read(self) -> Tensor:
        """Computes the parameter."""
        raise NotImplementedError


Fold = Callable[["Builder", str, Tensor], Folded | None]


@dataclass(frozen=True)
class Technique:
    """What stands between a model's code and its operators while it runs: wrapped modules, autocast, and the choice of
    the parameters that train.
    """

    rule: Rule | None = None  # runs in an operator's place, with its kind, arguments and attributes; None: itself
    autocast: str | None = None  # the lower precision that torch.autocast casts to
    inputs_require_grad: bool = False  # input embeddings are marked as requiring a gradient, where they do not already
    trainable: Callable[[str], bool] | None = None  # by name within the block; None: as the model's code says
    frozen_towers: frozenset[int] = frozenset()  # towers in whose layers nothing trains
    # the dtype in which a parameter is stored, by its name and the dtype that the model's code asks for
    stored: Callable[[str, str], str] | None = None
    stands_for: Callable[[str], str] | None = None  # the parameter's name for the name that a module asks for
    fold: Fold | None = None  # stands for a parameter that belongs to no Linear, by name; None: the parameter itself
    # Modules of matrices are those of bitsandbytes, which are all linear: transformers transposes the weights of
    # Conv1D.
    quantizes: bool = False


PLAIN = Technique()


class Builder:
    """Collects the operators of one block."""

    def __init__(self, name: str, technique: Technique = PLAIN) -> None:
        check_release()
        self.graph = LayerGraph(name)
        self.technique = technique
        self.autocast = technique.autocast
        self.casts: dict[int, Tensor] = {}  # autocast's cache: value of a parameter → its cast to the lower precision
        self.temporaries: list[Tensor] = []  # temporaries of the call that is running
        self.replacing = False  # the technique's rule is running: operators that it calls are not replaced again
        self.names: dict[int, int] = {}
        self.held: list[Tensor] = []  # parameters and inputs, which other code holds
        self.weights: dict[str, Tensor] = {}
        self.folded: dict[str, Folded] = {}  # parameters that are computed, while their module runs
        self.read_once: dict[str, Tensor] = {}  # their values, once read: torch.nn.utils.parametrize.cached()
        self.in_first: set[str] = set()  # weights of stacked experts that are [E, in, out]
        self.path: list[str] = []
        self.grad_enabled = True
        self.finished = False
        self.leaving = False  # an expression releases its operands
        self.arguments: tuple[int, ...] = ()  # storages of the arguments of the attention core that is running
        self.unwind: tuple[int, ...] = ()  # storages of the running function's locals, in slot order
        self.unwind_last: tuple[int, ...] = ()  # storages of the locals of its caller
        self.stack: tuple[int, ...] = ()  # storages of the running expression's temporaries

    def let_go(self, storage: int) -> None:
        """Notes that a storage has one name fewer. Without any, it is among the drops of the last operator."""
        self.names[storage] -= 1
        if self.names[storage] == 0 and self.graph.operators and not self.finished:
            self.graph.operators[-1].drops.append(storage)
            if self.leaving:
                self.graph.operators[-1].operands.append(storage)

    def _tensor(
        self,
        shape: tuple[int, ...],
        dtype: str,
        requires_grad: bool,
        label: str,
        parameter: str | None = None,
        leaf: bool = False,
    ) -> Tensor:
        graph = self.graph
        spec = TensorSpec(graph.values, 0, shape, contiguous(shape), dtype, requires_grad, parameter, leaf)
        graph.values += 1
        object.__setattr__(spec, "storage", graph.add_storage(spec.nbytes, label))
        tensor = Tensor(self, spec)
        self.held.append(tensor)
        return tensor

    def input(self, name: str, like: TensorSpec) -> Tensor:
        """Makes a tensor that another block made; the caller's code holds it while this block runs."""
        tensor = self._tensor(like.shape, like.dtype, like.requires_grad, name, leaf=like.leaf)
        if 0 not in like.strides:  # permuted
            object.__setattr__(tensor.spec, "strides", like.strides)
        self.graph.inputs[name] = tensor.spec
        return tensor

    def input_tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Makes a tensor that the training loop made and holds."""
        tensor = self._tensor(shape, dtype, False, name)
        self.graph.inputs[name] = tensor.spec
        return tensor

    def parameter(self, name: str, shape: Sequence[int], dtype: str, trainable: bool) -> Tensor:
        """Returns a weight of the block, by its name within the block. The same name gives the same tensor."""
        if self.technique.stands_for is not None:
            name = self.technique.stands_for(name)
        if name not in self.weights:
            trainable = self.technique.trainable(name) if self.technique.trainable else trainable
            dtype = self.technique.stored(name, dtype) if self.technique.stored else dtype
            tensor = self._tensor(tuple(shape), dtype, trainable, name, parameter=name, leaf=trainable)
            self.weights[name] = tensor
            self.graph.parameters[name] = tensor.spec
        return self.weights[name]

    @contextmanager
    def wrapped(self, *names: str) -> Iterator[None]:
        """Runs the module that owns these parameters. It has a wrapper for each parameter that the technique folds; the
        first has the outermost wrapper.
        """
        inside: list[str] = []
        for name in names:
            folded = self.technique.fold(self, name, self.weights[name]) if self.technique.fold else None
            if folded is not None:
                self.folded[name] = folded
                inside.append(name)
            del folded
        yield
        while inside:
            name = inside.pop()
            while not inside and self.read_once:
                self.read_once.pop(next(iter(self.read_once)))
            held = self.folded.pop(name).held
            while held:
                held.pop(0)

    def read(self, name: str) -> Tensor:
        """Returns the parameter as its module sees it."""
        if name not in self.folded:
            return self.weights[name]
        if name not in self.read_once:
            self.read_once[name] = self.folded[name].read()
        return self.read_once[name]

    def module(self, name: str) -> During:
        """Names the operators inside after this module."""
        return During(self, path=[*self.path, name])

    def locals(self, *tensors: Tensor, stack: Tensor | None = None) -> During:
        """Declares the caller's locals in slot order. If a checkpoint stops early inside, they are released in that
        order, before those of outer functions.

        stack: a temporary of the running expression, which dies as soon as the exception leaves the function.
        """
        temporaries = () if stack is None else (stack.spec.storage,)
        return During(self, unwind=(*(tensor.spec.storage for tensor in tensors), *self.unwind), stack=temporaries)

    def callers(self, *tensors: Tensor) -> During:
        """Does as `locals`, for the calling function. Its locals die after all that inner functions hold."""
        return During(self, unwind_last=tuple(tensor.spec.storage for tensor in tensors))

    def unkept(self, tensor: Tensor) -> None:
        """Says that after the last operator only an autograd graph holds this tensor, one that dies before backward.

        The first run of a checkpointed region keeps nothing in its graph, so there the tensor dies now. The same holds
        where a `dead` operator has no graph.
        """
        self.graph.operators[-1].unkept.append(tensor.spec.storage)

    def core(self, *tensors: Tensor | None) -> During:
        """Marks the operators inside as the core of attention, with these arguments. Megatron's selective checkpointing
        runs the core again.
        """
        return During(self, arguments=tuple(tensor.spec.storage for tensor in tensors if tensor is not None))

    def no_grad(self) -> During:
        """Does as torch.no_grad()."""
        return During(self, grad_enabled=False)

    def no_autocast(self) -> During:
        """Does as torch.autocast(enabled=False)."""
        return During(self, autocast=None)

    def run(self, kind: str, *inputs: Tensor, **attrs: object) -> tuple[Tensor, ...]:
        """Executes an operator, or what the technique puts in its place. Returns its outputs; hidden ones (kept for
        backward only) come last.
        """
        results = self._run(kind, inputs, attrs)
        self._end_call()
        return results

    def _end_call(self) -> None:
        """Releases the temporaries of the call, from the first argument's on."""
        while self.temporaries:
            self.temporaries.pop(0)

    def _run(self, kind: str, inputs: tuple[Tensor, ...], attrs: dict[str, object]) -> tuple[Tensor, ...]:
        rule = self.technique.rule
        if rule is not None and not self.replacing:
            self.replacing = True
            results = rule(self, kind, inputs, attrs)
            self.replacing = False
            if results is not None:
                return results
        if kind in COMPOSED:
            return COMPOSED[kind](self, inputs, attrs)
        if self.autocast is not None:
            # ATen/native/SoftMax.cpp converts to fp32 within the kernel
            fused = kind == "softmax" and inputs[0].dtype == "fp16" and "dtype" not in attrs
            if (kind in SETS_DTYPE and inputs[0].dtype in FLOATING) or fused:
                attrs["dtype"] = "fp32"
            dtype = target(kind, self.autocast)
            if dtype is not None and not (kind in ("softmax", "log_softmax") and "dtype" in attrs):
                order = ORDER.get(kind) or tuple(reversed(range(len(inputs))))
                casts = self._casted(dtype, inputs, order, cached=not attrs.get("of_view"))
                self.temporaries = [casts[i] for i in reversed(order)]
                return self._execute(kind, tuple(casts), attrs)
        return self._execute(kind, inputs, attrs)

    def lower(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors as autocast gives them to an operator of the lower precision."""
        return (
            tuple(self._casted(self.autocast, inputs, tuple(reversed(range(len(inputs)))))) if self.autocast else inputs
        )

    def _casted(
        self, dtype: str, inputs: tuple[Tensor, ...], order: tuple[int, ...], cached: bool = True
    ) -> list[Tensor]:
        """Casts every argument as cached_cast does, in `order`: from the last on, as C++ compilers evaluate arguments.

        A parameter that trains is cast to the lower precision once and kept, unless the operator reads a view of it.
        """
        casts = list(inputs)
        for i in order:
            x = casts[i]
            if x.dtype == dtype or x.dtype not in FLOATING:
                continue
            spec = x.spec
            kept = cached and spec.leaf and spec.requires_grad and spec.dtype == "fp32" and dtype == self.autocast
            if kept and spec.value in self.casts:
                casts[i] = self.casts[spec.value]
                continue
            casts[i] = self._execute("cast", (x,), {"dtype": dtype, "autocast": True})[0]
            if kept:
                self.casts[spec.value] = casts[i]
        return casts

    def _execute(self, kind: str, inputs: tuple[Tensor, ...], attrs: dict[str, object]) -> tuple[Tensor, ...]:
        graph = self.graph
        specs = tuple(tensor.spec for tensor in inputs)
        semantics = KINDS[kind]
        if not self.grad_enabled:
            attrs["no_grad"] = True
        if self.unwind:
            attrs["unwind"] = self.unwind
        if self.unwind_last:
            attrs["unwind_last"] = self.unwind_last
        if self.stack:
            attrs["stack"] = self.stack
        if self.arguments:
            attrs["core"] = self.arguments
        trains = bool(attrs.get("trains")) and attrs.get("tower", 0) not in self.technique.frozen_towers
        grad = self.grad_enabled and semantics.differentiable and (trains or any(spec.requires_grad for spec in specs))
        outputs = tuple(self._output(out, specs, grad) for out in semantics.infer(specs, attrs))
        if self.technique.inputs_require_grad and attrs.get("input_embeddings") and not grad:
            outputs = (replace(outputs[0], requires_grad=True, leaf=True), *outputs[1:])
        if kind == "new_leaf":
            outputs = (replace(outputs[0], requires_grad=True, leaf=True),)
        saved = semantics.saved(specs, outputs, attrs) if grad and "dead" not in attrs else ()
        name = ".".join([*self.path, str(attrs.get("label", kind))])
        graph.add_operator(Operator(len(graph.operators), kind, name, specs, outputs, attrs, saved))
        return tuple(Tensor(self, spec) for spec in outputs)

    def _output(self, out: Inferred, inputs: tuple[TensorSpec, ...], grad: bool) -> TensorSpec:
        graph = self.graph
        value = graph.values
        graph.values += 1
        requires_grad = grad and out.differentiable
        if out.alias is not None:
            return TensorSpec(value, inputs[out.alias].storage, out.shape, out.strides, out.dtype, requires_grad)
        spec = TensorSpec(value, len(graph.storage_bytes), out.shape, out.strides, out.dtype, requires_grad)
        graph.add_storage(spec.nbytes)
        return spec

    def op(
        self,
        kind: str,
        x: Tensor | None = None,
        y: Tensor | None = None,
        z: Tensor | None = None,
        *more: Tensor,
        **attrs: object,
    ) -> Tensor:
        """Executes an operator and returns its first output. The caller's code never sees the others.

        The first three operands have names of their own, so that temporaries among them die from first to last, as
        those of an expression do.
        """
        inputs = tuple(tensor for tensor in (x, y, z, *more) if tensor is not None)
        results = list(self._run(kind, inputs, attrs))
        first = results.pop(0)
        while results:
            results.pop(0)
        self._end_call()
        del inputs
        self.leaving = True
        del x, y, z, more
        self.leaving = False
        return first

    def finish(self, *outputs: Tensor) -> LayerGraph:
        """Returns the graph, with these results."""
        self.finished = True
        self.graph.cached = tuple(tensor.spec.storage for tensor in self.casts.values())
        self.graph.outputs = tuple(tensor.spec for tensor in outputs)
        return self.graph


def module_call(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function stand for a torch Module: `Module.__call__` holds the arguments until forward has returned."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return call


# Operators of models that are several of PyTorch's. These functions run for them, unless a technique replaces them.


def conv1d(b: Builder, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Runs transformers' Conv1D: addmm of x.view(-1, in). The view is made before autocast casts it, so it gets its
    gradient after the casts do.
    """
    x, *weights = inputs
    *size, inner = x.shape
    x = b.op("view", x, shape=(math.prod(size), inner))
    x = b.run("addmm", x, *weights, **{"label": "conv1d", **attrs})[0]
    return (b.op("view", x, shape=(*size, weights[0].shape[1])),)


def scaled_embedding(b: Builder, inputs: tuple[Tensor, ...], attrs: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Runs Gemma2TextScaledWordEmbedding.forward with ids, weight and embed_scale."""
    ids, weight, scale = inputs
    label, told = str(attrs["label"]), bool(attrs.get("input_embeddings"))
    return (
        b.op(
            "mul",
            b.op("embedding", ids, weight, label=f"{label}.embedding"),
            scale_as(b, scale, weight.dtype),
            label=label,
            input_embeddings=told,
        ),
    )


def scale_as(b: Builder, scale: Tensor, dtype: str) -> Tensor:
    """Returns embed_scale.to(dtype)."""
    return scale if scale.dtype == dtype else b.op("cast", scale, dtype=dtype)


COMPOSED: Mapping[str, Composed] = {"conv1d": conv1d, "scaled_embedding": scaled_embedding}


release_in_slot_order(__name__)
