"""The house: imports point one way, no circle, nothing too long, and names that say one thing."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "memsim"
FILES = sorted(PACKAGE.rglob("*.py"))
# Rooms, a floor a line, from the ground up: a file imports from its own room, or from floors below it.
FLOORS = (
    ("errors", "version", "tape", "catalog", "stacks", "graph"),
    ("units", "files", "cost", "machine"),
    ("run", "operators", "allocator"),
    ("framework", "timeline"),
    ("models", "passes", "schedule", "report", "traces"),
    ("results", "validation"),
    ("simulation",),
    ("search",),
    ("api",),
    ("cli", "__init__"),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES, MOST_OF_A_FUNCTION, MOST_AT_THE_TOP = 400, 60, 10
# Words that said several things at once: as a function's or a class's name they stand at most once.
ONCE = ("events", "table", "compare", "Stack", "Comparison", "Outcome", "Buffers", "Packing")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """The modules of memsim that a file imports from, wherever in the file, TYPE_CHECKING included."""
    known = {module_of(other) for other in FILES}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found = inner if inner in known else node.module
                if found in known:
                    yield str(found)


def test_no_file_is_part_of_a_circle() -> None:
    graph = nx.DiGraph((module_of(path), other) for path in FILES for other in imports_of(path))
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles
    assert not list(nx.selfloop_edges(graph))


def test_imports_point_down() -> None:
    upward = [
        f"{module_of(path)} imports {other}"
        for path in FILES
        for other in imports_of(path)
        if (room := room_of(module_of(path))) != room_of(other) and FLOOR[room] <= FLOOR[room_of(other)]
    ]
    assert not upward


def test_what_families_share_imports_no_family() -> None:
    shared = [path for path in FILES if path.parent == PACKAGE / "models" / "common"]
    taken = {other for path in shared for other in imports_of(path) if other.startswith("memsim.models.")}
    assert shared and all(other.startswith("memsim.models.common.") for other in taken)


def test_the_ground_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP
    assert {path.stem for path in PACKAGE.glob("*.py")} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_is_too_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and not any("njit" in ast.unparse(d) for d in node.decorator_list):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert (node.end_lineno or first) - first < MOST_OF_A_FUNCTION, node.name


def test_no_module_is_called_as_its_package() -> None:
    assert not [path for path in FILES if path.stem == path.parent.name]


def test_a_word_names_one_thing() -> None:
    names = Counter(
        node.name
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in ONCE
    )
    modules = Counter(path.stem for path in FILES if path.stem in ONCE)
    assert not [name for name, count in (names | modules).items() if count > 1]


OUTSIDE = sorted(path for folder in ("benchmarks", "tests") for path in (PACKAGE.parent / folder).rglob("*.py"))


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_benchmarks_and_tests_import_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "memsim":
            module = import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), name.name
