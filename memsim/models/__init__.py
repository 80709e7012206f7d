"""Model families: Hugging Face config fields → parameters and layer graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memsim.errors import Unsupported
from memsim.models import (
    cohere,
    deepseek,
    gemma,
    gemma1,
    glm,
    glm4_moe,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    ministral,
    mixtral,
    olmo,
    olmo2,
    olmoe,
    phi,
    phi3,
    smollm3,
    stablelm,
    starcoder2,
)
from memsim.models.model import Model, Settings

FAMILIES: dict[str, Callable[[Mapping[str, object], Settings], Model]] = {
    "llama": llama.build,
    "mistral": llama.build,
    "qwen2": llama.build,
    "qwen3": llama.build,
    "olmo2": olmo2.build,
    "phi3": phi3.build,
    "gemma": gemma1.build,
    "gemma2": gemma.build,
    "gemma3_text": gemma.build,
    "glm": glm.build,
    "glm4": glm.build,
    "granite": granite.build,
    "gpt2": gpt2.build,
    "gpt_neox": gpt_neox.build,
    "gpt_oss": gpt_oss.build,
    "phi": phi.build,
    "cohere": cohere.build,
    "cohere2": cohere.build,
    "ministral": ministral.build,
    "olmo": olmo.build,
    "olmoe": olmoe.build,
    "stablelm": stablelm.build,
    "smollm3": smollm3.build,
    "starcoder2": starcoder2.build,
    "glm4_moe": glm4_moe.build,
    "deepseek_v2": deepseek.build,
    "deepseek_v3": deepseek.build,
    "mixtral": mixtral.build,
    "qwen2_moe": mixtral.build,
    "qwen3_moe": mixtral.build,
}


NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
OTHERWISE = ("expert", "lora_rank", "ssm", "conv", "encoder", "vision", "audio", "altup", "softcap", "cross_attention", "patch")  # in names of fields: no Llama


def is_assumed(fields: Mapping[str, object]) -> bool:
    """Whether memsim does not know the model_type, but its fields are Llama's, so that it is taken for a Llama."""
    given = [key for key, value in fields.items() if value]
    known = str(fields.get("model_type")) in FAMILIES
    return not known and all(key in given for key in NEEDED) and not any(word in key for key in given for word in OTHERWISE)


def build(fields: Mapping[str, object], settings: Settings, strict: bool = False) -> Model:
    """The model of these config fields; an unknown model_type with Llama's fields as Llama, unless `strict`. Raises Unsupported."""
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is None and is_assumed(fields) and not strict:
        return llama.build({**fields, "model_type": "llama"}, settings)
    if family is None:
        raise Unsupported(f"model: model_type {fields.get('model_type')!r} is not supported yet; there are {', '.join(FAMILIES)}")
    return family(fields, settings)
