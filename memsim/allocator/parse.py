"""The grammar of PyTorch's setting string: `key:value,key:[value,value]`, white space ignored.

As of 2.15 (c10/core/AllocatorConfig.h) the parser passes over any token where a separator should be, and a number ends
where its digits do. `max_split_size_mb=64` is refused, for its key is unknown; `max_split_size_mb:64MiB` is 64. Earlier
parsers insist on separators.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from memsim.allocator.rules import Reserve, Rules, release
from memsim.errors import InputError
from memsim.units import MIB

_WORD = 1 << 64
_BOOLEANS = {
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "pinned_use_background_threads",
    "pinned_free_catch_all",
    "graph_capture_record_stream_reuse",
}


class _Tokens:
    """The tokens of a setting string, and a place among them."""

    def __init__(self, text: str, strict: bool) -> None:
        self.text = text
        self.strict = strict
        self.words: list[str] = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s+", "", text))
        self.at = 0
        self.key = ""

    def refuse(self, why: str) -> InputError:
        """Returns the error for the key that is being read."""
        return InputError(f"allocator: {self.key or repr(self.text)}: {why}")

    def peek(self) -> str:
        """Returns the next token, which must be there."""
        if self.at >= len(self.words):
            raise self.refuse(f"{self.text!r} ends where a value, ':', ',' or ']' should follow")
        return self.words[self.at]

    def take(self) -> str:
        """Returns the next token and passes it."""
        word = self.peek()
        self.at += 1
        return word

    def separator(self, expected: str) -> None:
        """Passes a separator. An earlier parser raises InputError for any other token."""
        word = self.take()
        if self.strict and word != expected:
            raise self.refuse(f"{word!r} stands where {expected!r} should")

    def size(self) -> int:
        """Reads an unsigned number, as C++'s stoull does."""
        word = self.take()
        found = re.match(r"([+-]?)(\d+)", word)
        if not found or int(found[2]) >= _WORD:
            raise self.refuse(f"{word!r} is not a whole number")
        return int(found[2]) if found[1] != "-" else -int(found[2]) % _WORD

    def real(self) -> float:
        """Reads a real number, as C++'s stod does."""
        word = self.take()
        found = re.match(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?|nan)", word, re.IGNORECASE)
        if not found:
            raise self.refuse(f"{word!r} is not a number")
        return float(found[0])

    def boolean(self) -> bool:
        """Reads True or False, and no other spelling."""
        word = self.take()
        if word not in ("True", "False"):
            raise self.refuse(f"{word!r} is neither True nor False")
        return word == "True"


def parsed(text: str, torch: str, rules: Rules) -> dict[str, Any]:
    """Returns the fields of Settings that the string sets. Raises InputError."""
    version = release(torch)
    tokens = _Tokens(text, strict=version < (2, 15))
    fields: dict[str, Any] = {}
    # The size of a large segment bounds other sizes, so it is read first, wherever it stands. It counts as a key
    # wherever its name stands.
    if "large_segment_size_mb" in rules.keys:
        while tokens.at < len(tokens.words):
            if tokens.take() == "large_segment_size_mb":
                tokens.key = "large_segment_size_mb"
                tokens.separator(":")
                fields["large_segment_size"] = fields["max_non_split_rounding"] = _large_segment(tokens)
        tokens.key = ""
    # PyTorch has two parsers, and each passes over the other's keys. So the string must be sound for both.
    for reading in (False, True):
        tokens.at = 0
        while tokens.at < len(tokens.words):
            tokens.key = tokens.take()
            if tokens.key not in rules.keys:
                raise InputError(
                    f"allocator: {tokens.key!r} is not a setting of PyTorch {torch}; "
                    f"{', '.join(sorted(rules.keys & _READERS.keys()))} are"
                )
            tokens.separator(":")
            if not reading:
                _skip(tokens)
            elif tokens.key in _READERS:
                fields |= _READERS[tokens.key](tokens, rules, fields)
            else:
                _check_other(tokens)
            if tokens.at < len(tokens.words):
                tokens.separator(",")
    return fields


def _check_other(tokens: _Tokens) -> None:
    """Reads the value of a setting that does not bear on placement."""
    if tokens.key in _BOOLEANS:
        tokens.boolean()
    elif tokens.key == "pinned_num_register_threads":
        threads = tokens.size()
        if threads > 128 or threads.bit_count() != 1:
            raise tokens.refuse(f"{threads} is not a power of two up to 128")
    elif tokens.size() == 0 and tokens.key == "pinned_reserve_segment_size_mb":
        raise tokens.refuse("0 is not greater than 0")


def _large_segment(tokens: _Tokens) -> int:
    mib = tokens.size()
    if mib <= 10:
        raise tokens.refuse(f"{mib} is too small; it must be more than 10")
    return min(mib, _WORD // MIB - 1) * MIB


def _read_large_segment(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    _skip(tokens)
    return {}


def _skip(tokens: _Tokens) -> None:
    if tokens.take() == "[":
        while tokens.take() != "]":
            pass


def _split_size(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> int:
    """Returns the bytes of a size that must not be below that of a large segment."""
    mib = tokens.size()
    large = fields.get("large_segment_size", 20 * MIB) // MIB
    least = large if rules.least_split_mib is None else rules.least_split_mib + 1
    if mib < least:
        raise tokens.refuse(f"{mib} is too small; it must be at least {least}")
    return min(mib, _WORD // MIB - 1) * MIB


def _max_split(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    return {"max_split_size": _split_size(tokens, rules, fields)}


def _non_split(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    return {"max_non_split_rounding": _split_size(tokens, rules, fields)}


def _threshold(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    value = tokens.real()
    if not 0 < value < 1:
        raise tokens.refuse(f"{value:g} is not between 0 and 1")
    return {"garbage_collection_threshold": value}


def _fraction(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    value = tokens.real()
    if not 0 <= value <= 1:
        raise tokens.refuse(f"{value:g} is not in [0, 1]")
    return {"per_process_memory_fraction": value}


def _divisions(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    """Reads one power of two for all sizes, or a list `[MiB:divisions,…,>:divisions]` with a value from each of its
    sizes on.
    """
    if tokens.peek() != "[":
        value = tokens.size()
        if value.bit_count() != 1:
            raise tokens.refuse(f"{value} is not a power of two")
        return {"roundup_power2_divisions": (value,) * 16}
    tokens.take()
    table = list(fields.get("roundup_power2_divisions", (0,) * 16))
    first, last = True, 0
    while tokens.peek() != "]":
        start = tokens.at
        bound = tokens.take()
        tokens.separator(":")
        value = tokens.size()
        if value.bit_count() > 1:
            raise tokens.refuse(f"{value} is neither a power of two nor 0")
        if bound == ">":
            begin = last + 1 if rules.last_listed_is_kept else last
            table[begin:] = [value] * (16 - begin)
        else:
            end, tokens.at = tokens.at, start
            mib = tokens.size()
            tokens.at = end
            if mib.bit_count() != 1:
                raise tokens.refuse(f"the size {mib} is not a power of two")
            last = min(mib.bit_length() - 1, 15)
            if first:
                table[:last] = [value] * last
                first = False
            table[last] = value
        if tokens.peek() != "]":
            tokens.separator(",")
    tokens.take()
    return {"roundup_power2_divisions": tuple(table)}


def _expandable(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    return {"expandable_segments": tokens.boolean()}


def _throw(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    return {"throw_on_cudamalloc_oom": tokens.boolean()}


def _reserve_of(word: str) -> Reserve | None:
    """Reads a fraction, or GiB as in 40G. PyTorch passes over anything else with a warning, and so
    this returns None.
    """
    in_gib = word[-1] in "Gg"
    number = word[:-1] if in_gib else word
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", number) or not 0 < float(number) < float("inf"):
        return None
    return Reserve(float(number), in_gib)


def _reserve(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    reserve = _reserve_of(tokens.take())
    return {} if reserve is None else {"expandable_segments_reserve": reserve}


def _reserve_by_class(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    """Passes over the value. Only streams that a serving layer tagged have a class; those of a Tape have none."""
    tokens.take()
    while tokens.peek() != "]":
        tokens.take()
        tokens.take()
        tokens.take()
        if tokens.peek() == ",":
            tokens.take()
    tokens.take()
    return {}


def _backend(tokens: _Tokens, rules: Rules, fields: dict[str, Any]) -> dict[str, Any]:
    word = tokens.take()
    if word == "cudaMallocAsync":
        raise tokens.refuse("cudaMallocAsync is not modelled; native is")
    if word != "native":
        raise tokens.refuse(f"{word!r} is not a backend; native is")
    return {}


_READERS: dict[str, Callable[[_Tokens, Rules, dict[str, Any]], dict[str, Any]]] = {
    "backend": _backend,
    "expandable_segments": _expandable,
    "expandable_segments_reserve": _reserve,
    "expandable_segments_reserve_by_class": _reserve_by_class,
    "garbage_collection_threshold": _threshold,
    "large_segment_size_mb": _read_large_segment,
    "max_non_split_rounding_mb": _non_split,
    "max_split_size_mb": _max_split,
    "per_process_memory_fraction": _fraction,
    "roundup_power2_divisions": _divisions,
    "throw_on_cudamalloc_oom": _throw,
}
