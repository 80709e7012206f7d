"""The ground of lifetimes: CPython counts references, and a function releases its locals in a known order.

Up to CPython 3.13 the locals of a function that returns are released in the order of their slots: arguments first, then
other locals as they first appear. From 3.14 on the order is the reverse. Lifetimes follow the Python that trains, which
is 3.11 in every stack, whatever Python runs memsim (docs/lifetimes.md).

So every module whose functions hold Tensors ends in `release_in_slot_order(__name__)`. Where the interpreter has the
other order, it gives each function of the module a `finally` that releases its locals one by one:

    def forward(x):                 def forward(x):
        y = f(x)                        try:
        return g(y)                         y = f(x)
                                            return g(y)
                                        finally:
                                            x = None
                                            y = None
"""

from __future__ import annotations

import ast
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from memsim.errors import Unsupported

Key = tuple[str, int]  # a function's name and its first line, which identify it within its file
TRACED = (3, 12)  # the last Python in which reading frame.f_locals keeps every local alive


class Mark:
    """Writes down its letter when its last reference goes."""

    def __init__(self, log: list[str], letter: str) -> None:
        self.log = log
        self.letter = letter

    def __del__(self) -> None:
        self.log.append(self.letter)


def check_interpreter() -> None:
    """Raises Unsupported where references are not counted: PyPy, GraalPy, free-threaded builds of CPython."""
    name = platform.python_implementation()
    if sys.implementation.name != "cpython":
        raise Unsupported(
            f"Python: {name} does not count references, on which lifetimes rest; CPython 3.11 or later does"
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise Unsupported(
            "Python: a free-threaded build puts releases off, on which lifetimes rest; CPython's default build does not"
        )


@lru_cache(maxsize=1)
def is_reversed() -> bool:
    """True if this interpreter releases the locals of a function that returns from the last slot to the first. Raises
    Unsupported for an order that is neither.
    """
    log: list[str] = []

    def returns() -> None:
        a, b, c = Mark(log, "a"), Mark(log, "b"), Mark(log, "c")  # noqa: F841

    returns()
    order = "".join(log)
    if order not in ("abc", "cba"):
        raise Unsupported(f"Python: {sys.version.split()[0]} releases locals in an order that memsim does not know")
    return order == "cba"


def check_release() -> None:
    """Raises Unsupported where locals do not die as in the Python that trains: a debugger or tracer reads them, and so
    keeps them alive. Takes microseconds.

    The test does not find a tracer that reads the locals of some functions only, as a debugger does where it stops.
    Where a tracer is active that may do so, this warns.
    """
    log: list[str] = []
    probe(log)
    if log != ["a", "rebound", "b", "c", "returned"]:
        raise Unsupported(
            "Python: a debugger or tracer keeps local variables alive, and so changes every lifetime; without it, "
            "or on Python 3.13 and later, memsim simulates"
        )
    tracer = sys.gettrace()
    if tracer is not None and sys.version_info[:2] <= TRACED and not is_harmless(tracer):
        warnings.warn(
            f"a trace function is active ({type(tracer).__module__}): where it looks at local variables, as a debugger "
            "does, lifetimes and figures change on this Python; they do not on 3.13 and later",
            stacklevel=2,
        )


def is_harmless(tracer: object) -> bool:
    """True if the tracer is known to leave locals alone: coverage.py's."""
    owner = type(getattr(tracer, "__self__", tracer))
    return owner.__module__.partition(".")[0] == "coverage"


def probe(log: list[str]) -> None:
    """Writes down when locals die. One is rebound, two are released on return."""

    def returns() -> None:
        a, b, c = Mark(log, "a"), Mark(log, "b"), Mark(log, "c")  # noqa: F841
        _ = (a := None), log.append("rebound")  # type: ignore[assignment, func-returns-value]  # noqa: F841

    returns()
    log.append("returned")


def release_in_slot_order(name: str) -> None:
    """Makes the functions of the module of this name release their locals from the first slot to the last, on every
    CPython. Costs nothing where they do so by themselves.

    Raises Unsupported where the interpreter does not count references, or the module's source is not there to be
    compiled again.
    """
    check_interpreter()
    if not is_reversed():
        return
    module = sys.modules[name]
    functions = list(functions_of(module))
    known = {key(code): code for function in functions for code in nested(function.__code__)}
    path = Path(module.__file__ or "")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise Unsupported(
            f"Python: {name} has no source file beside it, which Python {sys.version.split()[0]} needs; 3.13 does not"
        ) from None
    compiled = compile(ast.fix_missing_locations(Releasing(known).visit(tree)), str(path), "exec")
    again = {key(code): code for code in nested(compiled)}
    for function in functions:
        function.__code__ = again[key(function.__code__)]


def key(code: CodeType) -> Key:
    """Returns the key that tells a function's code from others in its file."""
    return code.co_name, code.co_firstlineno


def nested(code: CodeType) -> Iterator[CodeType]:
    """Yields a code object, and those of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """Yields the functions that a module's file defines, including methods and functions that decorators wrap."""
    owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    for owner in owners:
        for value in vars(owner).values():
            found = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            while found is not None:
                if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
                    yield found
                found = getattr(found, "__wrapped__", None)


class Releasing(ast.NodeTransformer):
    """Gives every function that has locals a `finally` that releases them in the order of their slots."""

    def __init__(self, known: dict[Key, CodeType]) -> None:
        self.known = known

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Gives a function, and the functions in it, their `finally`."""
        self.generic_visit(node)
        line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        code = self.known.get((node.name, line))
        # A cell may outlive the function in another's closure, so its variable is left alone.
        names = [name for name in code.co_varnames if name not in code.co_cellvars] if code else []
        if not names:
            return node
        described = ast.get_docstring(node, clean=False) is not None
        head, body = (node.body[:1], node.body[1:]) if described else ([], node.body)
        release: list[ast.stmt] = [
            ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None), lineno=node.lineno) for name in names
        ]
        node.body = [*head, ast.Try(body or [ast.Pass()], [], [], release)]
        return node


release_in_slot_order(__name__)
