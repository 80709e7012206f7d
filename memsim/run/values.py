"""Reads and checks each kind of value of a Run. Each reader raises ValueError in words that fit after the key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from pydantic import BeforeValidator

from memsim import catalog
from memsim.errors import nearest, show
from memsim.stacks.known import STACKS
from memsim.units import GIB, as_float, read_bytes

PATTERN = "*+?|()[]{}^$\\"  # characters that tell a pattern from names
ROUTINGS = ("balanced", "worst", "zeros")  # ways in which tokens go to experts


WORDS: dict[Callable[[object], object], str] = {}  # of validators that are made for a key: what is valid


def whole(least: int, most: int) -> BeforeValidator:
    """Returns a validator of whole numbers from `least` to `most`."""

    def check(value: object) -> object:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{show(value)} is not a whole number from {least} to {most}")
        return number

    WORDS[check] = f"a whole number from {least} to {most}"
    return BeforeValidator(check)


def number(test: Callable[[float], bool], words: str) -> BeforeValidator:
    """Returns a validator of finite numbers that pass `test`. `words` say in the error what would be valid."""

    def check(value: object) -> object:
        number = as_float(value)
        if number is None or not math.isfinite(number) or not test(number):
            raise ValueError(f"{show(value)} is not {words}")
        return number

    WORDS[check] = words
    return BeforeValidator(check)


SHARE = number(lambda share: 0 < share <= 1, "a share from above 0 to 1")


def flag(value: object) -> object:
    """Returns the value if it is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{show(value)} is not true or false")
    return value


def targets(value: object) -> object:
    """Returns "all-linear", None, a regular expression, or a tuple of module names."""
    if value == "all-linear" or value is None:
        return value
    if isinstance(value, str) and set(value) & set(PATTERN):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{show(value)} is not a regular expression: {error}") from None
        return value
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f"{show(value)} is not all-linear, a list of module names such as [q_proj, v_proj] or a pattern for "
            "whole names"
        )
    return tuple(name.strip() for name in names)


def modules(value: object) -> object:
    """Returns a tuple of names, from a list or from text with commas; None stays None."""
    if value is None:
        return None
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{show(value)} is not a list of module names such as [lm_head, embed_tokens]")
    return tuple(name.strip() for name in names)


def layers(value: object) -> object:
    """Returns a tuple of numbers of layers, from a list or a single number; None stays None."""
    if value is None:
        return value
    numbers = [value] if isinstance(value, int) else value
    if (
        not isinstance(numbers, (list, tuple))
        or not numbers
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    ):
        raise ValueError(f"{show(value)} is not a list of numbers of layers such as [0, 1]")
    return tuple(numbers)


def patterns(value: object) -> object:
    """Returns a tuple of patterns of names, from a list or a single pattern."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{show(value)} is not a list of patterns of names such as ['layers.*.mlp.*', lm_head]")
    return tuple(name.strip() for name in names)


def memory(value: object) -> object:
    """Returns a size as a number of GiB."""
    count = read_bytes(value)
    return float(value) if isinstance(value, (int, float)) else count / GIB  # a number of GiB stays as it was written


def device(value: object) -> object:
    """Returns the name of a device if the catalogue has it; None stays None."""
    known = catalog.devices()
    if value is not None and (not isinstance(value, str) or value not in known):
        raise ValueError(
            f"{show(value)} is not in the catalogue{nearest(str(value), known)} (devices: {', '.join(known)})"
        )
    return value


def stack(value: object) -> object:
    """Returns the name of a stack if memsim knows it."""
    if not isinstance(value, str) or value not in STACKS:
        raise ValueError(f"{show(value)} is not a stack{nearest(str(value), STACKS)} (stacks: {', '.join(STACKS)})")
    return value


def routing(value: object) -> object:
    """Returns how tokens go to experts: a name of ROUTINGS, or {"imbalance": a number from 1 on}."""
    if isinstance(value, str) and value in ROUTINGS:
        return value
    if isinstance(value, Mapping) and set(value) == {"imbalance"}:
        number = as_float(value["imbalance"])
        if number is not None and math.isfinite(number) and number >= 1:
            return {"imbalance": number}
        raise ValueError(f"imbalance {show(value['imbalance'])} is not a number from 1 on")
    raise ValueError(f"{show(value)} is not one of {', '.join(ROUTINGS)} or a mapping such as {{imbalance: 2.0}}")


def text(value: object) -> object:
    """Returns text; None becomes empty text."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text")
    return value or ""


def model(value: object) -> object:
    """Returns a model reference if it is text that is not empty, or a mapping of config fields."""
    if not isinstance(value, Mapping) and not (isinstance(value, str) and value):
        raise ValueError(
            f"{show(value)} is not a model; give a name, the path of a Hugging Face config.json, or its fields"
        )
    return dict(value) if isinstance(value, Mapping) else value
