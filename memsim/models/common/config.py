"""Hugging Face config fields of a decoder, read once with their defaults and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memsim.errors import InputError

# model_types whose code reads sliding_window; others have the field in vain
WINDOWED = (
    *("mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt_oss", "cohere2", "exaone4", "ministral"),
    *("olmo3", "smollm3", "starcoder2", "mixtral", "qwen2_moe", "qwen3_moe"),
)


@dataclass(frozen=True)
class DecoderConfig:
    """The fields that decide shapes; names are Hugging Face's."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    hidden_act: str
    max_position_embeddings: int
    attention_dropout: float
    sliding_window: int | None
    fields: Mapping[str, object]

    @property
    def groups(self) -> int:
        """Number of query heads for each key-value head."""
        return self.num_attention_heads // self.num_key_value_heads


def integer(fields: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Returns a positive integer field. Raises InputError."""
    value = fields.get(key, default)
    if value is None:
        raise InputError(f"model: the config of a {fields.get('model_type')} needs {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"model.{key}: {value!r} is not a positive integer")
    return value


def under_one_name(fields: Mapping[str, object], key: str, *others: str) -> dict[str, object]:
    """The fields with `key` for whichever of its names is given, as transformers takes any of them. Raises InputError
    where two say different things.
    """
    given = {name: fields[name] for name in (key, *others) if fields.get(name) is not None}
    if len(set(map(repr, given.values()))) > 1:
        raise InputError(f"model.{key}: {' and '.join(map(str, given))} are one field, and differ; give one of them")
    rest = {name: value for name, value in fields.items() if name not in (key, *others)}
    return {**rest, **({key: next(iter(given.values()))} if given else {})}


def probability(fields: Mapping[str, object], key: str, default: float) -> float:
    """Returns a dropout's probability. Raises InputError."""
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"model.{key}: {value!r} is not a probability from 0 to below 1")
    return float(value)


def check_heads_divide(config: DecoderConfig, asks: str) -> None:
    """Raises InputError where the heads do not divide hidden_size, which the config class `asks` requires whatever
    head_dim is (validate_architecture).
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    if hidden % heads:
        raise InputError(
            f"model.num_attention_heads: {heads} heads do not divide hidden_size {hidden}, which {asks} asks for, "
            "with head_dim too"
        )


def decoder_config(fields: Mapping[str, object], **defaults: object) -> DecoderConfig:
    """Reads the fields. `defaults` are those of the family's config class in transformers. Raises InputError."""
    merged = {**defaults, **{k: v for k, v in fields.items() if v is not None}}
    hidden, heads = integer(merged, "hidden_size"), integer(merged, "num_attention_heads")
    kv = integer(merged, "num_key_value_heads", heads)
    if "head_dim" not in merged and hidden % heads:
        raise InputError(
            f"model.num_attention_heads: {heads} heads do not divide hidden_size {hidden}; give head_dim or a divisor"
        )
    if heads % kv:
        raise InputError(f"model.num_key_value_heads: {kv} does not divide num_attention_heads {heads}")
    window = merged.get("sliding_window") if merged["model_type"] in WINDOWED else None
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise InputError(f"model.sliding_window: {window!r} is not a whole number of tokens, or null")
    return DecoderConfig(
        model_type=str(merged["model_type"]),
        hidden_size=hidden,
        intermediate_size=integer(merged, "intermediate_size"),
        num_hidden_layers=integer(merged, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=integer(merged, "head_dim", hidden // heads),
        vocab_size=integer(merged, "vocab_size"),
        tie_word_embeddings=bool(merged.get("tie_word_embeddings", False)),
        attention_bias=bool(merged.get("attention_bias", False)),
        mlp_bias=bool(merged.get("mlp_bias", False)),
        hidden_act=str(merged.get("hidden_act", "silu")),
        max_position_embeddings=integer(merged, "max_position_embeddings", 2048),
        attention_dropout=probability(merged, "attention_dropout", 0.0),
        sliding_window=window,
        fields=merged,
    )
