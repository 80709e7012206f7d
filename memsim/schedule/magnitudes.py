"""A DoRA module's first magnitudes, as PEFT computes them when it wraps a model (peft/tuners/lora/dora.py,
DoraLinearLayer.update_layer).

They are the norms of the rows of base + adapters. They are computed in the dtype of the adapters, outside of autocast,
and with a graph that dies with the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memsim.framework.model import Model, Parameter
from memsim.framework.roles import MAGNITUDE_NAME
from memsim.graph.dtypes import ITEMSIZE, promote
from memsim.graph.layout import contiguous, like
from memsim.machine.storages import Machine
from memsim.operators.linear4bit import BLOCK
from memsim.operators.linear8bit import dequantize_rows
from memsim.tape import Category

SCRATCH = int(Category.SCRATCH)
COMPUTE = "bf16"  # bnb_4bit_compute_dtype, the dtype that the weights had


def placed(m: Machine, model: Model, layer: int, p: Parameter, named: Mapping[tuple[int, str], Parameter]) -> int:
    """Allocates the magnitudes p, as PEFT computes the first ones, and returns their storage. named: the parameters by
    layer and name.
    """
    module = p.name.removesuffix(f".{MAGNITUDE_NAME}")
    # a tied head has the embedding's weight
    weight = named.get((layer, f"{module}.weight")) or replace(model.before[0], module="linear")
    adapter = next(
        named[layer, name]
        for name in (f"{module}.lora_A.weight", f"{module}.lora_embedding_A")
        if (layer, name) in named
    )
    return first_magnitude(
        m, weight, named.get((layer, f"{module}.bias")), adapter.shape[0], adapter.created_dtype or adapter.dtype
    )


def first_magnitude(m: Machine, weight: Parameter, bias: Parameter | None, rank: int, dtype: str) -> int:
    """Computes the magnitudes of a module of this weight [out, in], or [in, out] where it is stored the other way
    round. Returns their storage. `dtype` is that of the adapters.
    """
    transposed = weight.module in ("conv1d", "embedding")
    out, inputs = weight.shape[::-1] if transposed else weight.shape
    n = out * inputs
    # adapters are computed in fp32
    halves = [m.alloc(4 * rank * inputs, SCRATCH), m.alloc(4 * out * rank, SCRATCH)] if dtype == "fp16" else []
    copy = copied(m, weight, bias) if weight.quantized.startswith("nf4") else []
    base, base_dtype = dequantized(m, weight, dtype)
    product = m.alloc((4 if halves else ITEMSIZE[dtype]) * n, SCRATCH)
    m.workspace()
    if halves:
        before, product = product, m.alloc(2 * n, SCRATCH)
        m.release(before)
    scaled = m.alloc(ITEMSIZE[dtype] * n, SCRATCH)
    total = promote(base_dtype, dtype)
    added = m.alloc(ITEMSIZE[total] * n, SCRATCH)
    m.release(scaled)
    norm = m.alloc(ITEMSIZE[total] * out, int(Category.ADAPTERS))
    shape = (out, inputs)
    m.reduction_scratch(shape, like(shape, (shape, (1, out) if transposed else contiguous(shape))), (1,), total)
    m.release(*copy, *base, product, added, *halves)
    return norm


def dequantized(m: Machine, weight: Parameter, dtype: str) -> tuple[list[int], str]:
    """Runs dequantize_module_weight. Returns the storage of the weight's values, none for one that is not quantized,
    and their dtype.
    """
    if weight.quantized == "int8":
        return [dequantize_rows(m, weight.elements, SCRATCH)], "fp32"
    if not weight.quantized:
        return [], dtype
    scales = m.alloc(4 * -(-weight.elements // BLOCK), SCRATCH) if weight.quantized == "nf4-double" else -1
    values = m.alloc(ITEMSIZE[COMPUTE] * weight.elements, SCRATCH)
    if scales >= 0:
        m.release(scales)
    return [values], COMPUTE


def copied(m: Machine, weight: Parameter, bias: Parameter | None) -> list[int]:
    """Runs deepcopy(base_layer) of a Linear4bit. The storage of each tensor is cloned, and an empty tensor of one
    element is made and released. A bias is cloned.
    """
    blocks = -(-weight.elements // BLOCK)
    packed = (weight.elements + 1) // 2
    double = weight.quantized == "nf4-double"
    # (bytes, bytes of an element): the scales, the 16 values; the scales' mean, their own scales and map; the packed
    # weights
    tensors = [(blocks, 1) if double else (4 * blocks, 4), (16 * 4, 4)]
    tensors += [(4, 4), (4 * -(-blocks // 256), 4), (256 * 4, 4)] if double else []
    made = []
    for nbytes, itemsize in [*tensors, (packed, 1)]:
        made.append(m.alloc(nbytes, SCRATCH))
        m.scratch(itemsize)
    if bias is not None:
        made.append(m.alloc(ITEMSIZE[bias.created_dtype or bias.dtype] * bias.elements, SCRATCH))
    return made
