"""Model families: Hugging Face config fields → parameters and layer graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memsim.errors import Unsupported
from memsim.models import gemma, gpt2, gpt_neox, llama, mixtral, olmo2, phi3
from memsim.models.model import Model, Settings

FAMILIES: dict[str, Callable[[Mapping[str, object], Settings], Model]] = {
    "llama": llama.build,
    "mistral": llama.build,
    "qwen2": llama.build,
    "qwen3": llama.build,
    "olmo2": olmo2.build,
    "phi3": phi3.build,
    "gemma2": gemma.build,
    "gemma3_text": gemma.build,
    "gpt2": gpt2.build,
    "gpt_neox": gpt_neox.build,
    "mixtral": mixtral.build,
    "qwen2_moe": mixtral.build,
    "qwen3_moe": mixtral.build,
}


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these config fields. Raises Unsupported for a model_type that memsim does not know."""
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is None:
        raise Unsupported(f"model: model_type {fields.get('model_type')!r} is not supported yet; there are {', '.join(FAMILIES)}")
    return family(fields, settings)
