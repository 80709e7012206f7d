"""Model families: Hugging Face config fields → parameters and layer graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module

from memsim.errors import Unsupported
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models.common.flash_attention import HELD
from memsim.models.tasks import check_fields, task_of

Build = Callable[[Mapping[str, object], Settings], Model]

# model_type → the file and the function that builds it; a file is imported when a model of it is asked for
FAMILIES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "build"),
    "mistral": ("llama", "build"),
    "qwen2": ("llama", "build"),
    "qwen3": ("llama", "build"),
    "olmo2": ("olmo2", "build"),
    "phi3": ("phi3", "build"),
    "falcon": ("falcon", "build"),
    "gemma": ("gemma1", "build"),
    "gemma2": ("gemma", "build"),
    "gemma3_text": ("gemma", "build"),
    "glm": ("glm", "build"),
    "glm4": ("glm", "build"),
    "granite": ("granite", "build"),
    "bert": ("bert", "build"),
    "vit": ("vit", "build"),
    "t5": ("t5", "build"),
    "gpt2": ("gpt2", "build"),
    "gpt_bigcode": ("gpt_bigcode", "build"),
    "gpt_neox": ("gpt_neox", "build"),
    "gpt_oss": ("gpt_oss", "build"),
    "phi": ("phi", "build"),
    "bloom": ("bloom", "build"),
    "cohere": ("cohere", "build"),
    "cohere2": ("cohere", "build"),
    "ernie4_5": ("near_llama", "ernie"),
    "exaone4": ("near_llama", "exaone"),
    "seed_oss": ("near_llama", "seed"),
    "ministral": ("ministral", "build"),
    "olmo": ("olmo", "build"),
    "olmo3": ("olmo3", "build"),
    "opt": ("opt", "build"),
    "olmoe": ("olmoe", "build"),
    "stablelm": ("stablelm", "build"),
    "smollm3": ("smollm3", "build"),
    "starcoder2": ("starcoder2", "build"),
    "glm4_moe": ("glm4_moe", "build"),
    "deepseek_v2": ("deepseek", "build"),
    "deepseek_v3": ("deepseek", "build"),
    "mixtral": ("mixtral", "build"),
    "qwen2_moe": ("mixtral", "build"),
    "qwen3_moe": ("mixtral", "build"),
}


@cache
def family_of(model_type: str) -> Build:
    """What builds a model_type of FAMILIES."""
    file, function = FAMILIES[model_type]
    built: Build = getattr(import_module(f"{__name__}.{file}"), function)
    return built


NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# In names of fields that say something: no Llama.
OTHERWISE = (
    r"expert|moe_|n_group|lora_rank|ssm|conv|encoder|vision|audio|patch|type_vocab|per_layer|altup|block_types|"
    r"softcap|cross_attention|lambda|alibi|qk_norm|qk_layernorm|clip_qkv|partial_rotary|rotary_pct|no_rope|"
    r"sliding_window_pattern|dropout_prob|residual_dropout|hidden_dropout|embedding_dropout|pdrop|multiplier|"
    r"logit_scale|scale_emb|scale_depth|mup|parallel_residual|parallel_attn|post_norm|swa|llama_4_scaling|cycles"
)
UNLIKE = ("hunyuan_v1_dense", "hunyuan_v1_moe")  # model_types whose fields are Llama's, and which norm queries and keys


def is_assumed(fields: Mapping[str, object]) -> bool:
    """Whether memsim does not know the model_type, but its fields are Llama's, so that it is taken for a Llama."""
    given = [key for key, value in fields.items() if value]
    known = str(fields.get("model_type")) in FAMILIES
    unlike = fields.get("model_type") in UNLIKE
    return (
        not known
        and not unlike
        and all(key in given for key in NEEDED)
        and not any(is_otherwise(key, fields[key]) for key in given)
    )


def is_otherwise(key: str, value: object) -> bool:
    """Whether a field says that the model is no Llama: of norms with other names, layers of several types, or by a word
    in its name.
    """
    if key == "layer_types":
        return not isinstance(value, (list, tuple)) or set(value) != {"full_attention"}
    if "norm" in key and "eps" in key:
        return key != "rms_norm_eps"
    return re.search(OTHERWISE, key) is not None


def takes_tokens(fields: Mapping[str, object]) -> bool:
    """Whether the model's main input is token ids (main_input_name)."""
    return fields.get("model_type") != "vit"


def decodes_beside(fields: Mapping[str, object]) -> bool:
    """Whether the model has a decoder beside an encoder."""
    return fields.get("model_type") == "t5"


def saved_by_task(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Modules that PEFT trains as a whole whatever a run says, as its task_type for the model's class does
    (PeftModelForSequenceClassification).
    """
    if fields.get("model_type") != "bert":
        return ()
    from memsim.models.bert import saved_by_task as saved_by_classes

    return saved_by_classes(fields)


def build(fields: Mapping[str, object], settings: Settings, strict: bool = False) -> Model:
    """The model of these config fields; an unknown model_type with Llama's fields as Llama, unless `strict`. Raises
    Unsupported.
    """
    model_type = str(fields.get("model_type"))
    if model_type in FAMILIES or is_assumed(fields):
        task_of(fields)
        check_fields(fields)
    if model_type not in FAMILIES:
        if is_assumed(fields) and not strict:
            return family_of("llama")({**fields, "model_type": "llama"}, settings)
        raise Unsupported(
            f"model: model_type {fields.get('model_type')!r} is not supported yet; there are {', '.join(FAMILIES)}"
        )
    if settings.attention == "flash_attention_2" and model_type not in HELD:
        raise Unsupported(
            f"attention: flash_attention_2 with model_type {model_type} is not supported yet; sdpa and eager are"
        )
    return family_of(model_type)(fields, settings)
