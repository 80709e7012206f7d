"""Says in one line what is wrong with a Run: the key, the value found, the valid ones, and the nearest of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from memsim.errors import SHOWN, nearest, show
from memsim.run import meant

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """The dotted key and the reason of every error, each key once: unknown keys first, for they explain a missing
    one, which is left out beside them.
    """
    errors = error.errors(include_url=False)
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    others = [e for e in errors if e["type"] != "extra_forbidden" and not (unknown and e["type"] == "missing")]
    found: dict[str, str] = {}
    for one in [*unknown, *others]:
        key, reason = _explained(one, model)
        found.setdefault(key, reason)
    return list(found.items())


def _explained(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    loc = tuple(str(part) for part in error["loc"])
    value = error["input"]
    kind = error["type"]
    if kind == "extra_forbidden":
        return ".".join(part[:SHOWN] for part in loc), _unknown_key(loc, model)
    loc = tuple(part for part in loc if _is_key(part, model))
    key = ".".join(loc)
    if kind == "value_error":
        return key, str(error["ctx"]["error"])
    if kind == "literal_error":
        options = _options(loc, model)
        near = meant.of_value(key, value) or nearest(str(value), options)
        return key, f"{show(value)} is not one of {', '.join(options)}{near}"
    if kind == "missing":
        return key, (
            "missing; give a name (`memsim models` lists them), the path of a Hugging Face config.json, or its fields"
        )
    if kind in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        inner = keys(model, loc)
        example = f"{{{inner[0]}: {value}}}" if isinstance(value, (str, int)) and inner else "{…}"
        return key, f"{show(value)} is not a mapping; write {loc[-1]}: {example} (keys: {', '.join(inner)})"
    return key, f"{show(value)}: {error['msg']}"


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
    known = meant.of_key(".".join(loc))
    if known:
        return f"unknown key; {known} (`memsim keys` lists all)"
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
