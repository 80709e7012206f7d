"""LoRA on an embedding (peft/tuners/lora/layer.py, Embedding.forward): a small embedding and a product beside the
frozen one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call, scale_as
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.roles import MAGNITUDE_NAME
from memsim.framework.tensor import Tensor
from memsim.passes.dora import get_weight_norm, magnitude

if TYPE_CHECKING:
    from memsim.passes.lora_settings import Lora


@module_call
def lora_embedding(
    b: Builder, kind: str, attrs: Mapping[str, object], inputs: tuple[Tensor, ...], lora: Lora
) -> Tensor:
    """Runs result + (embedding(x, A.T) @ B.T) * scaling, for ids x [B, S]; A [rank, V], B [H, rank]. Dropout is made
    and not used.

    Where the embedding is scaled, the third input is its scale. The adapter's result is scaled by it too.
    """
    x, weight, *scale = inputs
    module = str(weight.spec.parameter).removesuffix(".weight")
    vocabulary, hidden = weight.shape
    result = b.run(kind, *inputs, **attrs)[0]
    result_dtype = result.dtype
    embedding_a = F.transpose(
        b, b.parameter(f"{module}.lora_embedding_A", (lora.rank, vocabulary), lora.dtype, True), 0, 1
    )
    embedding_b = F.transpose(b, b.parameter(f"{module}.lora_embedding_B", (hidden, lora.rank), lora.dtype, True), 0, 1)
    if lora.dora:
        return F.to(b, dora_result(b, inputs, result, embedding_a, embedding_b, lora), result_dtype)
    after_a = b.op("embedding", x, embedding_a, label=f"{module}.lora_embedding_A")
    adapter_output = b.op("mul_scalar", b.op("mm", after_a, embedding_b, label=f"{module}.lora_embedding_B"))
    if scale:
        adapter_output = b.op("mul", adapter_output, scale_as(b, scale[0], adapter_output.dtype))
    result, before = b.op("add", result, adapter_output), result
    if lora.unnamed_output:
        del adapter_output
    del before
    result = F.to(b, result, result_dtype)
    return result


@module_call
def dora_result(
    b: Builder, inputs: tuple[Tensor, ...], result: Tensor, embedding_a: Tensor, embedding_b: Tensor, lora: Lora
) -> Tensor:
    """Runs DoraEmbeddingVariant.forward."""
    x, weight, *scale = inputs
    mag_norm_scale, dora_result = dora_embedding(b, x, weight, embedding_a, embedding_b, lora)
    if scale:
        dora_result = b.op("mul", dora_result, scale_as(b, scale[0], dora_result.dtype))
    result = b.op("add", b.op("mul", mag_norm_scale, result), dora_result)
    return result


@module_call
def dora_embedding(
    b: Builder, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, lora: Lora
) -> tuple[Tensor, Tensor]:
    """Runs DoraEmbeddingLayer.forward."""
    module, out = str(weight.spec.parameter).removesuffix(".weight"), weight.shape[1]
    # Nothing is differentiated through the product. But its graph lives as long as its name, and holds autocast's
    # casts.
    with b.no_grad():
        lower_a, lower_b = b.lower(lora_a, lora_b)
        lora_weight = F.transpose(b, b.op("mm", lower_a, lower_b), 0, 1)
    magnitude = b.parameter(f"{module}.{MAGNITUDE_NAME}", (out,), lora.dtype, True)
    weight_norm = get_weight_norm(b, F.transpose(b, weight, 0, 1), lora_weight)
    mag_norm_scale = b.op("div", magnitude, weight_norm)
    embedded, projected = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    result_dora = b.op(
        "mul_scalar",
        b.op("mul", mag_norm_scale, b.op("mm", b.op("embedding", x, lora_a, label=embedded), lora_b, label=projected)),
    )
    del lower_b
    del lower_a
    del lora_weight
    return mag_norm_scale, result_dora


def embedding_adapter(p: Parameter, lora: Lora) -> list[Parameter]:
    """Returns the two adapters of an embedding with weight p, and with DoRA its magnitudes."""
    module, (vocabulary, hidden) = p.name.removesuffix(".weight"), p.shape
    shapes = (("A", (lora.rank, vocabulary)), ("B", (hidden, lora.rank)))
    rows = [
        Parameter(
            f"{module}.lora_embedding_{name}",
            shape,
            lora.dtype,
            adapter=True,
            module="embedding adapter",
            created_dtype=p.dtype,
        )
        for name, shape in shapes
    ]
    return [*rows, magnitude(module, p, lora)] if lora.dora else rows


release_in_slot_order(__name__)
