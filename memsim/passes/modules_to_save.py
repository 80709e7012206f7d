"""Modules that train as a whole beside the adapters (peft/utils/other.py, ModulesToSaveWrapper). A copy trains and
runs; the original stays, frozen.

A copy of a tied module has a weight of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.roles import COPY
from memsim.framework.tensor import Tensor
from memsim.passes.targets import HEAD

MARK = ".modules_to_save."
EMBEDDING = ("embedding", "scaled_embedding")  # operators of embeddings
# Modules whose operator is replaced, as two may share a weight.
BY_OPERATOR = (HEAD, "embed_tokens", "embed_in", "wte", "wpe")


def copy_name(name: str) -> str:
    """Returns the name of the copy of a parameter."""
    module, _, leaf = name.rpartition(".")
    return f"{module}{MARK}{leaf}"


def stands_for(saved: frozenset[str]) -> Callable[[str], str] | None:
    """Returns the function from the name that a module's code asks for to the name of the parameter that it gets."""
    modules = saved.difference(BY_OPERATOR)
    return (lambda name: copy_name(name) if name.rpartition(".")[0] in modules else name) if modules else None


def run_copy(
    b: Builder, kind: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object], saved: frozenset[str]
) -> tuple[Tensor, ...] | None:
    """Runs the operator of the head or of an embedding with the copy's weight. Returns None where the module has no
    copy.
    """
    module = (
        str(attrs.get("module"))
        if kind == "linear"
        else str(inputs[1].spec.parameter).removesuffix(".weight")
        if kind in EMBEDDING
        else ""
    )
    if module not in saved or module not in BY_OPERATOR:
        return None
    weight = inputs[1]
    return b.run(
        kind,
        inputs[0],
        b.parameter(copy_name(f"{module}.weight"), weight.shape, weight.dtype, True),
        *inputs[2:],
        **attrs,
    )


def copies(parameters: Sequence[Parameter], module: str) -> list[Parameter]:
    """Returns the copies of a module's parameters and buffers, as deepcopy makes them, in their dtype."""
    own = [p for p in parameters if p.name.rpartition(".")[0] == module and not p.adapter]
    return [
        replace(
            p,
            name=copy_name(p.name),
            adapter=True,
            module=COPY,
            trainable=not p.buffer,
            created_dtype="",
            cast_twice="",
        )
        for p in own
    ]


release_in_slot_order(__name__)
