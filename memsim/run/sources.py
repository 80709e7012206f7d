"""Where a Run comes from: what RUN may be on a command line, and what --set changes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from memsim import catalog
from memsim.errors import InputError, show
from memsim.run import hub, yamlfile
from memsim.run.model_reference import changed
from memsim.units import GIB

# keys of a Run that no config of a model has
OF_A_RUN = ("model", "method", "batch", "train", "checkpointing", "optimizer", "device", "steps")


def keys_of_device(name: object) -> dict[str, object]:
    """The keys that a device of the catalogue sets: what PyTorch's allocator can have of it, and its kernels."""
    device = catalog.devices().get(name) if isinstance(name, str) else None
    if device is None:
        return {}
    memory: dict[str, object] = {"device_memory_gib": device.usable / GIB}
    return memory if device.sm is None else {**memory, "sm": device.sm}


def read(source: str | Path) -> tuple[dict[str, object], str, str, Path]:
    """What RUN may be: an example, a name of the catalogue, a file, a name on the Hugging Face hub.

    A file is a Run if it has `model`, and a config of a model if it has `model_type` without; so is a folder with a
    config.json. Returns the mapping behind it; the Run's name; what to call it in errors; the folder that paths in it
    are relative to. Raises InputError.
    """
    text = str(source)
    examples, path = catalog.examples(), Path(text)
    if isinstance(source, str) and text in examples:
        return yamlfile.read_mapping(examples[text]), text, f"{text} (example)", examples[text].parent
    if isinstance(source, str) and text in catalog.models():
        return {"model": text}, text, text, Path()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name too long for a file, or with a zero byte
        exists = False
    if exists:
        return _of_file(path), path.stem, text, path.parent
    if isinstance(source, str) and _is_of_hub(text, path):
        return {"model": text}, path.name, text, Path()
    if path.suffix.lower() in hub.FILES or len(path.parts) > 1:
        raise InputError(f"{text}: no such file; give a YAML file or one of the runs {', '.join(examples)}")
    hint = hub.nearest_model(text, [*examples, *catalog.models()])
    raise InputError(
        f"{text!r}: neither a file nor a name of the catalogue{hint} (runs: {', '.join(examples)}; `memsim models` "
        "lists the models)"
    )


def _is_of_hub(text: str, path: Path) -> bool:
    """Whether a name means a model of the hub. Where its owner is a folder here, it is rather a path that is wrong, and
    nothing is fetched for it.
    """
    if not hub.is_name(text):
        return False
    return not path.parent.is_dir() or hub.in_catalogue(text) is not None or hub.in_cache(text) is not None


def _of_file(path: Path) -> dict[str, object]:
    """The Run in a file, or that of the config in it, with every other key's default."""
    if path.is_dir() and (path / hub.CONFIG).is_file():
        return {"model": str(path.absolute())}
    if path.suffix.lower() == ".json" and _is_config(_json(path)):
        return {"model": str(path.absolute())}
    data = yamlfile.read_mapping(path)
    return {"model": data} if _is_config(data) else data


def _json(path: Path) -> object:
    """What a JSON file holds; None where it is none, of which the reader of YAML has more to say."""
    try:
        return json.loads(yamlfile.read_text(path))
    except (ValueError, RecursionError):
        return None


def _is_config(data: object) -> bool:
    return isinstance(data, Mapping) and "model_type" in data and not any(key in data for key in OF_A_RUN)


def change(text: str) -> tuple[str, object]:
    """Reads KEY=VALUE, the value as YAML. Raises InputError for any other form."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(key.strip().split(".")):
        raise InputError(f"--set {text!r}: write KEY=VALUE, such as batch.sequence=4096")
    return key.strip(), yamlfile.parse(value, f"--set {key.strip()}")


def changed_by(
    data: Mapping[str, object], changes: Sequence[tuple[str, object]], folder: Path = Path()
) -> dict[str, object]:
    """A copy of `data` with the changes made, nested mappings made where they are missing. A model's name stands for
    the fields of its config; a path is relative to `folder`. Raises InputError.
    """
    result = dict(data)
    # A device that is asked for decides, whatever the file says of another.
    if any(key == "device" and value is not None for key, value in changes):
        result = {key: value for key, value in result.items() if key not in ("device_memory_gib", "sm")}
    for key, value in changes:
        *outer, last = key.split(".")
        if outer == ["model"] and isinstance(result.get("model"), str):
            try:
                result["model"] = changed(str(result["model"]), folder, last, value)
            except InputError as error:
                raise type(error)(f"--set: {error}") from None
            continue
        level = result
        for depth, name in enumerate(outer):
            inner = level.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                at = ".".join(outer[: depth + 1])
                raise InputError(f"--set: {key}: {at} is {show(inner)}, which has no keys")
            level[name] = copy = dict(inner or {})
            level = copy
        level[last] = value
    return result
