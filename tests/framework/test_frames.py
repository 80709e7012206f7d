"""Lifetimes are those of the Python that trains, whatever Python runs the tests (docs/lifetimes.md)."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace

import pytest

from memsim.errors import Unsupported
from memsim.framework import frames
from memsim.run.job import Run
from memsim.simulation.support import check_stack
from memsim.stacks.known import GOLDEN

PACKAGE = Path(__file__).parents[2] / "memsim"
HOLDERS = {"Builder", "Tensor"}
LAST = "release_in_slot_order(__name__)"
NO_TENSORS = {"b", "name", "_"}  # parameters of a lambda that hold none

MODULE = '''
"""Functions of every kind, whose locals write their letters down."""

from contextlib import contextmanager
from functools import wraps

from memsim.framework.frames import Mark


def wrapped(function):
    @wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def plain(log, one, two):
    """A docstring stays."""
    three = Mark(log, "3")
    four = Mark(log, "4")
    return log


@wrapped
def decorated(log, one):
    two = Mark(log, "2")
    return two


def outer(log):
    def inner(one):
        two = Mark(log, "2")
        three = one

    inner(Mark(log, "1"))
    escapes = lambda: log
    return escapes


@contextmanager
def context(log):
    one, two = Mark(log, "1"), Mark(log, "2")
    yield
    log.append("after")


class Kind:
    def method(self, log):
        one, two = Mark(log, "1"), Mark(log, "2")

    @property
    def value(self):
        return self.method

    @staticmethod
    def static(log):
        one, two = Mark(log, "1"), Mark(log, "2")


def early(log, stop):
    one = Mark(log, "1")
    if stop:
        return "early"
    two = Mark(log, "2")
    del one
    log.append("deleted")
'''


def holders() -> list[Path]:
    """The files whose functions hold Tensors."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        if names & HOLDERS or path == PACKAGE / "framework" / "builder.py":
            found.append(path)
    return found


@pytest.mark.parametrize("path", holders(), ids=lambda path: path.stem)
def test_every_file_that_holds_tensors_releases_them_in_slot_order(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.unparse(tree.body[-1]) == LAST
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):  # which cannot have a `finally`
            assert len({argument.arg for argument in node.args.args} - NO_TENSORS) <= 1, ast.unparse(node)


@pytest.fixture(params=[False, True], ids=["as it is", "compiled again"])
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """MODULE, whose functions are compiled again where this Python needs it, and once where it does not."""
    if request.param:
        monkeypatch.setattr(frames, "is_reversed", lambda: True)
    path = tmp_path / "kinds_of_functions.py"
    path.write_text(MODULE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, made)
    spec.loader.exec_module(made)
    frames.release_in_slot_order(path.stem)
    yield made


def test_locals_of_every_kind_of_function_die_in_slot_order(module: ModuleType) -> None:
    def log_of(call: str, *arguments: object) -> list[str]:
        log: list[str] = []
        owner: object = module
        for name in call.split(".")[:-1]:
            owner = getattr(owner, name)
        getattr(owner, call.rpartition(".")[2])(log, *arguments)
        return log

    assert log_of("plain", 1, 2) == ["3", "4"]
    assert module.plain.__doc__ == "A docstring stays."
    assert log_of("decorated", 1) == ["2"]
    assert log_of("early", True) == ["1"]
    assert log_of("early", False) == ["1", "deleted", "2"]
    assert log_of("Kind.static") == ["1", "2"]
    inner: list[str] = []
    assert module.outer(inner)() is inner and inner == ["2", "1"]
    ours: list[str] = []
    module.Kind().value(ours)
    assert ours == ["1", "2"]
    around: list[str] = []
    with module.context(around):
        around.append("inside")
    assert around == ["inside", "after", "1", "2"]


def test_which_pythons_release_in_reverse() -> None:
    assert frames.is_reversed() == (sys.version_info >= (3, 14))
    frames.check_release()


def test_a_tracer_that_reads_locals_is_refused_where_that_keeps_them_alive() -> None:
    def tracer(frame: FrameType, event: str, argument: object) -> object:
        assert frame.f_locals is not None
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)  # type: ignore[arg-type]
    try:
        if sys.version_info >= (3, 13):
            frames.check_release()
        else:
            with pytest.raises(Unsupported, match="a debugger or tracer keeps local variables alive"):
                frames.check_release()
    finally:
        sys.settrace(before)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="looking at locals keeps none alive from 3.13 on")
def test_a_tracer_that_may_look_at_locals_is_warned_of() -> None:
    def debugger(frame: FrameType, event: str, argument: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        with pytest.warns(UserWarning, match="a trace function is active"):
            frames.check_release()
    finally:
        sys.settrace(before)


def test_coverage_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = type("CTracer", (), {"__module__": "coverage.tracer"})()
    monkeypatch.setattr(sys, "gettrace", lambda: tracer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames.check_release()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("pypy", "Python: .* does not count references, on which lifetimes rest; CPython 3.11 or later does"),
        ("free-threaded", "Python: a free-threaded build puts releases off"),
    ],
)
def test_an_interpreter_that_does_not_count_references_is_refused(
    what: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "pypy":
        monkeypatch.setattr(sys, "implementation", SimpleNamespace(name="pypy"))
    else:
        monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    with pytest.raises(Unsupported, match=text):
        frames.check_interpreter()


def test_a_module_without_its_source_is_refused_where_it_must_be_compiled_again(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "is_reversed", lambda: True)
    Path(str(module.__file__)).unlink()
    with pytest.raises(Unsupported, match="kinds_of_functions has no source file beside it"):
        frames.release_in_slot_order("kinds_of_functions")


def test_a_stack_that_trains_on_another_python_is_refused() -> None:
    run = Run(model="llama3.2-1b")
    with pytest.raises(Unsupported, match=r"stack: golden trains on Python 3.14, whose order of release is not built"):
        check_stack(run, replace(GOLDEN, python="3.14"))
