"""Which classes of transformers memsim models, and which fields that every config may have it does not: a config.json
that names another class or sets such a field is refused, not simulated as something else.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError, Unsupported, show

# model_type → classes of `architectures` that are modelled, the one of a config without any first (transformers'
# MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, and names that a class had before)
CLASSES: Mapping[str, tuple[str, ...]] = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM"),
    "mistral": ("MistralForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM",),
    "phi3": ("Phi3ForCausalLM",),
    "falcon": ("FalconForCausalLM", "RWForCausalLM"),
    "gemma": ("GemmaForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3_text": ("Gemma3ForCausalLM",),
    "glm": ("GlmForCausalLM",),
    "glm4": ("Glm4ForCausalLM",),
    "granite": ("GraniteForCausalLM",),
    "bert": ("BertForMaskedLM", "BertForSequenceClassification"),
    "vit": ("ViTForImageClassification",),
    "t5": ("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    "gpt2": ("GPT2LMHeadModel",),
    "gpt_bigcode": ("GPTBigCodeForCausalLM",),
    "gpt_neox": ("GPTNeoXForCausalLM",),
    "gpt_oss": ("GptOssForCausalLM",),
    "phi": ("PhiForCausalLM",),
    "bloom": ("BloomForCausalLM",),
    "cohere": ("CohereForCausalLM",),
    "cohere2": ("Cohere2ForCausalLM",),
    "ernie4_5": ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    "exaone4": ("Exaone4ForCausalLM",),
    "seed_oss": ("SeedOssForCausalLM",),
    "ministral": ("MinistralForCausalLM",),
    "olmo": ("OlmoForCausalLM",),
    "olmo3": ("Olmo3ForCausalLM",),
    "opt": ("OPTForCausalLM",),
    "olmoe": ("OlmoeForCausalLM",),
    "stablelm": ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    "smollm3": ("SmolLM3ForCausalLM",),
    "starcoder2": ("Starcoder2ForCausalLM",),
    "glm4_moe": ("Glm4MoeForCausalLM",),
    "deepseek_v2": ("DeepseekV2ForCausalLM",),
    "deepseek_v3": ("DeepseekV3ForCausalLM",),
    "mixtral": ("MixtralForCausalLM",),
    "qwen2_moe": ("Qwen2MoeForCausalLM",),
    "qwen3_moe": ("Qwen3MoeForCausalLM",),
}
# field that any config may have → what it says where nothing changes; null is as well
PLAIN: Mapping[str, object] = {
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,  # without which models of transformers 5 fail
    "is_causal": True,
    "use_bidirectional_attention": False,
    "per_layer_config": None,
    "experts_implementation": "grouped_mm",
    "pruned_heads": {},
}
ENCODERS = ("bert", "vit", "t5")
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the name of a decoder with a head over the vocabulary ends


def task_of(fields: Mapping[str, object]) -> str:
    """The class that the config's `architectures` names, or its family's usual one. Raises InputError, and Unsupported
    for any that is not modelled.
    """
    kind = str(fields.get("model_type"))
    named = fields.get("architectures")
    names = [named] if isinstance(named, str) else named
    if names is None or names == []:
        return CLASSES.get(kind, ("",))[0]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"model.architectures: {names!r} is not a list of names such as [LlamaForCausalLM]")
    known = CLASSES.get(kind, ())
    for name in names:
        if name not in known and (known or not name.endswith(CAUSAL)):
            modelled = f"{' and '.join(known)} {'is' if len(known) == 1 else 'are'}" if known else "…ForCausalLM is"
            raise Unsupported(f"model.architectures: {name[:60]} is not supported yet; of model_type {kind} {modelled}")
    return str(names[0])


def is_read(key: str, kind: str) -> bool:
    """Whether the code of a model_type reads a field of PLAIN at all."""
    if key == "use_bidirectional_attention":
        return kind in ("gemma", "gemma3_text")
    return key != "is_causal" or kind not in ENCODERS


def check_fields(fields: Mapping[str, object]) -> None:
    """Raises Unsupported for a field that every config may have, changes memory, and is not modelled."""
    for key, plain in PLAIN.items():
        value = fields.get(key)
        if value is None or value == plain or not is_read(key, str(fields.get("model_type"))):
            continue
        shown = str(value).lower() if isinstance(value, bool) else show(value)
        valid = "null" if plain is None else str(plain).lower()
        raise Unsupported(f"model.{key}: {shown} is not supported yet; {valid} is")
