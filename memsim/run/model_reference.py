"""What `model:` refers to: a name of the catalogue or of the Hugging Face hub, a config.json, or its fields."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memsim import catalog
from memsim.errors import InputError, Unsupported, show
from memsim.run import hub, yamlfile

# Fields that are sizes, and so positive whole numbers wherever they are given.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    "n_inner",
    "d_model",
    "d_ff",
    "d_kv",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "type_vocab_size",
    "num_channels",
    "num_labels",
)
ALIASES = {"n_embd": "hidden_size", "n_head": "num_attention_heads"}


@dataclass(frozen=True)
class Resolved:
    """A model's config fields and where they came from."""

    name: str  # a name for people
    config: Mapping[str, object]
    from_file: bool = False
    path: Path | None = None  # of that file


def resolve(model: str | Mapping[str, object], folder: Path) -> Resolved:
    """Returns the config that `model` means. A path is relative to `folder`, or to the current folder. Raises
    InputError that begins with the key.
    """
    if isinstance(model, Mapping):
        _check_spelling(model)
        return Resolved(_check(model, "model"), dict(model))
    known = catalog.models()
    if model in known:
        return Resolved(model, dict(known[model]))
    path, name = _find(model, folder), ""
    if path is None and hub.is_name(model):
        entry, name = hub.in_catalogue(model), model.rsplit("/", 1)[-1]
        if entry is not None:
            return Resolved(entry, dict(known[entry]))
        try:
            path = hub.config_file(model)
        except InputError as error:
            raise InputError(f"model: {error}") from None
    if path is None:
        hint = hub.nearest_model(model, known)
        what = (
            "is no such file"
            if model.endswith(".json") or model.startswith((".", "/", "~"))
            else "is not in the catalogue"
        )
        raise InputError(
            f"model: {show(model)} {what}{hint} (`memsim models` lists the names; the path of a Hugging Face "
            "config.json works too)"
        )
    try:
        config = json.loads(yamlfile.read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise InputError(f"model: {error}") from None
        raise InputError(f"model: {path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"model: {path}: not a Hugging Face config: a JSON object with model_type and sizes")
    called = _check(config, f"model: {path}")
    return Resolved(name or called, config, from_file=True, path=path)


def changed(model: str | Mapping[str, object], folder: Path, key: str, value: object) -> dict[str, object]:
    """The fields of a model's config, one of them changed. Raises InputError that begins with the key."""
    if isinstance(model, Mapping):
        return {**model, key: value}
    found = resolve(model, folder)
    if key not in found.config and key not in SIZES:
        near = difflib.get_close_matches(key, {*found.config, *SIZES}, 1, cutoff=0.85)
        if near:
            raise InputError(f"model.{key}: unknown key; did you mean {near[0]}?")
    return {**found.config, key: value, "_name_or_path": f"{found.name}, changed"}


def _find(model: str, folder: Path) -> Path | None:
    """Returns the config.json that a path means: the path itself, or the file in the folder that it names."""
    for base in (folder, Path()):
        try:
            path = base / Path(model).expanduser()
            path = path / "config.json" if path.is_dir() else path
            if path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # a name too long for a file, a zero byte, no home folder
            return None
    return None


def _check(config: Mapping[str, object], where: str) -> str:
    """Checks what holds for every family, and returns a name for people. `where` begins the error."""
    kind = config.get("model_type")
    dot = "." if where == "model" else ": "
    seen = next((key for key in ("vision_config", "audio_config", "text_config") if config.get(key)), None)
    if seen is not None:
        raise Unsupported(
            f"{where}{dot}{seen}: {kind if isinstance(kind, str) else 'this'} is more than a language model: "
            f"{hub.OF_ITS_TEXT}"
        )
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{where}{dot}model_type: missing; give the family, such as model_type: qwen2")
    for key in SIZES:
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31):
            raise InputError(f"{where}{dot}{key}: {show(value)} is not a positive whole number")
    fields = {ALIASES.get(key, key): value for key, value in config.items() if key in SIZES and isinstance(value, int)}
    hidden, heads, kv = (fields.get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if heads and kv and kv > heads:
        raise InputError(f"{where}{dot}num_key_value_heads: {kv} is more than the {heads} of num_attention_heads")
    if heads and kv and heads % kv:
        raise InputError(f"{where}{dot}num_key_value_heads: {kv} does not divide the {heads} of num_attention_heads")
    # latent attention gives the sizes of its heads in other keys
    if heads and hidden and hidden % heads and "head_dim" not in fields and not config.get("kv_lora_rank"):
        raise InputError(
            f"{where}{dot}num_attention_heads: {heads} does not divide the {hidden} of hidden_size; give head_dim or "
            "another number of heads"
        )
    name = config.get("_name_or_path")
    return name.rstrip("/").rsplit("/", 1)[-1] if isinstance(name, str) and name.strip("/") else kind


def _check_spelling(config: Mapping[str, object]) -> None:
    """Refuses a hand-written field that nearly spells the name of a size. Under a default it would be ignored in
    silence.
    """
    for key in config:
        if key in SIZES:
            continue
        near = [name for name in difflib.get_close_matches(key, SIZES, 1, cutoff=0.9) if name not in config]
        if near:
            raise InputError(f"model.{key}: unknown key; did you mean {near[0]}?")
