"""LoRA on an embedding (peft/tuners/lora/layer.py, Embedding.forward): a small embedding and a product beside the frozen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memsim.builder import Builder, Tensor, module_call
from memsim.models import functional as F
from memsim.models.model import Parameter

if TYPE_CHECKING:
    from memsim.passes.lora import Lora


@module_call
def lora_embedding(b: Builder, attrs: Mapping[str, object], x: Tensor, weight: Tensor, lora: Lora) -> Tensor:
    """result + (embedding(x, A.T) @ B.T) * scaling, for ids x [B, S]; A [rank, V], B [H, rank]. Dropout is made and not used."""
    module = str(weight.spec.parameter).removesuffix(".weight")
    vocabulary, hidden = weight.shape
    result = b.run("embedding", x, weight, **attrs)[0]
    result_dtype = result.dtype
    embedding_a = F.transpose(b, b.parameter(f"{module}.lora_embedding_A", (lora.rank, vocabulary), lora.dtype, True), 0, 1)
    embedding_b = F.transpose(b, b.parameter(f"{module}.lora_embedding_B", (hidden, lora.rank), lora.dtype, True), 0, 1)
    after_a = b.op("embedding", x, embedding_a, label=f"{module}.lora_embedding_A")
    adapter_output = b.op("mul_scalar", b.op("mm", after_a, embedding_b, label=f"{module}.lora_embedding_B"))
    result, before = b.op("add", result, adapter_output), result
    if lora.unnamed_output:
        del adapter_output
    del before
    result = F.to(b, result, result_dtype)
    return result


def embedding_adapter(p: Parameter, lora: Lora) -> list[Parameter]:
    """The two adapters of an embedding with weight p."""
    module, (vocabulary, hidden) = p.name.removesuffix(".weight"), p.shape
    shapes = (("A", (lora.rank, vocabulary)), ("B", (hidden, lora.rank)))
    return [
        Parameter(f"{module}.lora_embedding_{name}", shape, lora.dtype, adapter=True, module="embedding adapter", created_dtype=p.dtype)
        for name, shape in shapes
    ]
