"""A layer graph executed again for other inputs."""

from __future__ import annotations

from memsim.framework.builder import Builder, Technique
from memsim.framework.frames import release_in_slot_order
from memsim.framework.tensor import Tensor
from memsim.graph.layer_graph import LayerGraph, TensorSpec


def rewrite(graph: LayerGraph, inputs: dict[str, TensorSpec], grad: bool = True) -> LayerGraph:
    """Executes the graph again for other inputs, such as ones that require a gradient. Dtypes, shapes and what requires
    a gradient follow from them. Without `grad` it runs as under torch.no_grad().

    Autocast casts an input that is a leaf once and keeps the result, as it does with parameters.
    """
    b = Builder(
        graph.name, Technique(inputs_require_grad=any(out.leaf for op in graph.operators for out in op.outputs))
    )
    env: dict[int, Tensor] = {}
    values_of: dict[int, list[int]] = {}
    moved: dict[int, int] = {}  # old storage → new

    def bind(old: TensorSpec, new: Tensor) -> None:
        env[old.value] = new
        moved[old.storage] = new.spec.storage
        values_of.setdefault(old.storage, []).append(old.value)

    for name, spec in graph.inputs.items():
        bind(spec, b.input(name, inputs[name]))
    for name, spec in graph.parameters.items():
        bind(spec, b.parameter(name, spec.shape, spec.dtype, spec.requires_grad))
    keep = {spec.storage for spec in graph.outputs}
    given = {spec.storage for spec in b.graph.inputs.values()}
    for op in graph.operators:
        module = op.name.removesuffix(str(op.attrs.get("label", op.kind))).rstrip(".")
        b.path = module.split(".") if module else []
        b.grad_enabled = grad and not op.attrs.get("no_grad", False)
        unwound = ("unwind", "unwind_last", "stack")
        b.unwind, b.unwind_last, b.stack = (
            tuple(moved[storage] for storage in op.attrs.get(name, ()))  # type: ignore[attr-defined]
            for name in unwound
        )
        core: tuple[int, ...] = op.attrs.get("core", ())  # type: ignore[assignment]
        b.arguments = tuple(moved[storage] for storage in core)
        arguments = tuple(env[spec.value] for spec in op.inputs)
        source = arguments[0].spec if op.attrs.get("autocast") else None
        if source is not None and source.leaf and source.storage in given and source.dtype == "fp32":
            if source.value not in b.casts:
                b.casts[source.value] = b.run(op.kind, *arguments, **op.attrs)[0]
            results: tuple[Tensor, ...] = (b.casts[source.value],)
        else:
            results = b.run(op.kind, *arguments, **op.attrs)
        del arguments
        b.graph.operators[-1].operands.extend(moved[storage] for storage in op.operands)
        for old, new in zip(op.outputs, results, strict=False):
            bind(old, new)
            del new
        if grad:
            b.graph.operators[-1].unkept.extend(moved[storage] for storage in op.unkept)
        del results
        for storage in op.drops if grad else (*op.unkept, *op.drops):
            if storage not in keep:
                for value in values_of.pop(storage, ()):
                    env.pop(value, None)
    outputs = tuple(env[spec.value] for spec in graph.outputs)
    again = b.finish(*outputs)
    again.results = graph.results
    again.cached = (*(moved[storage] for storage in graph.cached), *again.cached)
    return again


release_in_slot_order(__name__)
