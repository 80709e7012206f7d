"""Says in one line what is wrong with a Run: the key, the value found, the valid ones, and the nearest of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from memsim.errors import SHOWN, nearest, show

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Returns the dotted key and the reason of the most telling error. An unknown key comes first, for it explains a
    missing one.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    loc = tuple(str(part) for part in first["loc"])
    value = first["input"]
    kind = first["type"]
    if kind == "extra_forbidden":
        return ".".join(part[:SHOWN] for part in loc), _unknown_key(loc, model)
    loc = tuple(part for part in loc if _is_key(part, model))
    key = ".".join(loc)
    if kind == "value_error":
        return key, str(first["ctx"]["error"])
    if kind == "literal_error":
        options = _options(loc, model)
        return key, f"{show(value)} is not one of {', '.join(options)}{nearest(str(value), options)}"
    if kind == "missing":
        return key, (
            "missing; give a name (`memsim models` lists them), the path of a Hugging Face config.json, or its fields"
        )
    if kind in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        inner = keys(model, loc)
        example = f"{{{inner[0]}: {value}}}" if isinstance(value, (str, int)) and inner else "{…}"
        return key, f"{show(value)} is not a mapping; write {loc[-1]}: {example} (keys: {', '.join(inner)})"
    return key, f"{show(value)}: {first['msg']}"


def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[str]:
    """Returns the valid keys below a path of keys."""
    for name in path:
        field = model.model_fields.get(name)
        inner: Any = field.annotation if field else None
        if not hasattr(inner, "model_fields"):
            return []
        model = inner
    return list(model.model_fields)


def _unknown_key(loc: tuple[str, ...], model: type[BaseModel]) -> str:
    valid = keys(model, loc[:-1])
    every = [
        name for outer in keys(model) for name in (outer, *(f"{outer}.{inner}" for inner in keys(model, (outer,))))
    ]
    prefix = "".join(f"{name}." for name in loc[:-1])
    beside = difflib.get_close_matches(loc[-1].lower(), valid, 1, cutoff=0.6)
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in every}
    elsewhere = difflib.get_close_matches(loc[-1].lower(), by_leaf, 1, cutoff=0.7)
    near = f"{prefix}{beside[0]}" if beside else by_leaf[elsewhere[0]] if elsewhere else ""
    hint = f"; did you mean {near}?" if near else ""
    return f"unknown key{hint} (valid: {', '.join(valid)})"


def _is_key(part: str, model: type[BaseModel]) -> bool:
    """True if the part of a location is a key. Locations also name the branches of unions, which mean nothing to a
    reader.
    """
    return part in model.model_fields or any(part in keys(model, (outer,)) for outer in model.model_fields)


def _options(loc: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    for name in loc[:-1]:
        inner: Any = model.model_fields[name].annotation
        model = inner
    return [str(option) for option in get_args(model.model_fields[loc[-1]].annotation)]
