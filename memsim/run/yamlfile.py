"""Reads and writes YAML as people mean it.

YAML 1.1, which PyYAML reads, takes `on` for true, `1:30` for ninety and `1e-3` for text. Here YAML 1.2 decides, and a
key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path

import yaml

from memsim.errors import InputError

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: type = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
LARGEST_FILE = 2**20  # bytes; a Run is some lines, and a Hugging Face config some hundred
NESTING = 32
TOO_DEEP = f"nested more than {NESTING} levels deep"

_CORE = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class _Core(_Loader):  # type: ignore[misc]
    """PyYAML's safe loader with the core schema's plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Builds a mapping. Raises ConstructorError for a key that is given twice or is not hashable."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                what = f"{key!r} is given twice" if isinstance(key, Hashable) else "a key must be a word"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        result: dict[Hashable, object] = super().construct_mapping(node, deep)
        return result

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Reads a whole number, decimal or hexadecimal; a leading zero does not make it octal."""
        text = str(node.value)
        return int(text, 16 if text.startswith("0x") else 10)


class _CoreDumper(_Dumper):  # type: ignore[misc]
    """PyYAML's safe dumper, which quotes text that the core schema would read as something else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in _CORE:
    for _class in (_Core, _CoreDumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
_Core.add_constructor("tag:yaml.org,2002:int", _Core.construct_yaml_int)


def parse(text: str, source: str) -> object:
    """Reads the YAML document in `text`. Raises InputError that names `source` and the line."""
    try:
        _check_events(text, source)
        loader = _Core(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            value: object = loader.construct_document(node)
            return value
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        # the limit that PyYAML itself has from 6.0.4 on
        if isinstance(error, RecursionError) or "nesting depth" in str(error):
            raise InputError(f"{source}: {TOO_DEEP}") from None
        raise InputError(f"{source}: not valid YAML{_where(error)}") from None


def _where(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = "" if mark is None else f" at line {mark.line + 1}"
    return f"{line}: {problem}" if problem else line


def _check_events(text: str, source: str) -> None:
    """Refuses documents nested deeper than any Run, before anything is built of them, and aliases, which can make a
    small file unfold into a huge one.
    """
    loader = _Core(text)
    depth = 0
    try:
        while loader.check_event():
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTING:
                raise InputError(f"{source}: {TOO_DEEP}")
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{source}: aliases (*name) are not read; write the value out")
    finally:
        loader.dispose()


def read_text(path: Path) -> str:
    """Returns the text of a small file. Raises InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE // 2**20} MiB, which no run or config is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8") from None


def read_mapping(path: Path) -> dict[str, object]:
    """Returns the mapping in a YAML (or JSON) file. Raises InputError."""
    return mapping(parse(read_text(path), str(path)), str(path))


def mapping(value: object, source: str) -> dict[str, object]:
    """Returns `value` if it is a mapping with words for keys. Raises InputError otherwise."""
    if not isinstance(value, Mapping):
        kind = {type(None): "empty", list: "a list", str: "text"}.get(type(value), f"a {type(value).__name__}")
        raise InputError(f"{source}: is {kind}, not a mapping; write keys and values such as `model: qwen2.5-7b`")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{source}: the key {key!r} is not a word")
    return dict(value)


def dump(data: Mapping[str, object]) -> str:
    """Writes YAML with the keys in their order."""
    text: str = yaml.dump(
        data, Dumper=_CoreDumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )
    return text


def inline(value: object) -> str:
    """Writes a value on one line, as a person would write it after KEY=."""
    text: str = yaml.dump(
        value, Dumper=_CoreDumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**6
    )
    return text.removesuffix("...\n").strip() if not isinstance(value, str) or text.startswith(("'", '"')) else value
