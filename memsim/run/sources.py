"""The sources of a Run: a file or a name of the catalogue, and the changes that --set makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memsim import catalog
from memsim.errors import InputError, nearest, show
from memsim.run import yamlfile
from memsim.units import GIB


def keys_of_device(name: object) -> dict[str, object]:
    """The keys that a device of the catalogue sets: what PyTorch's allocator can have of it, and its kernels."""
    device = catalog.devices().get(name) if isinstance(name, str) else None
    if device is None:
        return {}
    memory: dict[str, object] = {"device_memory_gib": device.usable / GIB}
    return memory if device.sm is None else {**memory, "sm": device.sm}


def read(source: str | Path) -> tuple[dict[str, object], str, str, Path]:
    """Reads the mapping behind a path or a name. Returns it, the Run's name, its name in errors, and the folder that
    paths in it are relative to.
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
        return yamlfile.read_mapping(path), path.stem, text, path.parent
    if path.suffix.lower() in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        raise InputError(f"{text}: no such file; give a YAML file or one of the runs {', '.join(examples)}")
    hint = nearest(text, [*examples, *catalog.models()])
    raise InputError(
        f"{text!r}: neither a file nor a name of the catalogue{hint} (runs: {', '.join(examples)}; `memsim models` "
        "lists the models)"
    )


def change(text: str) -> tuple[str, object]:
    """Reads KEY=VALUE, the value as YAML. Raises InputError for any other form."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(key.strip().split(".")):
        raise InputError(f"--set {text!r}: write KEY=VALUE, such as batch.sequence=4096")
    return key.strip(), yamlfile.parse(value, f"--set {key.strip()}")


def changed_by(data: Mapping[str, object], changes: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Returns a copy of `data` with the changes made. Nested mappings are made where they are missing."""
    result = dict(data)
    # A device that is asked for decides, whatever the file says of another.
    if any(key == "device" and value is not None for key, value in changes):
        result = {key: value for key, value in result.items() if key not in ("device_memory_gib", "sm")}
    for key, value in changes:
        *outer, last = key.split(".")
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
