"""The stack frames of a snapshot: which line of the user's code asked for memory, and the whole stack behind it.

A file is untrusted: what is not a list of frames with texts and a whole number is as if it were not there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.tape import Calls
from memsim.traces.trace import Trace

DEEPEST = 400  # frames of one stack, the innermost first
LONGEST = 160  # characters of a name; those of C++ templates run to thousands
UNNAMED = "no frame recorded"
BEFORE = "before the recording"
PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
STANDARD = re.compile(r"[/\\][Ll]ib[/\\](?:python3\.\d+[/\\])?(\w+)")  # and then the name of a module of Python's own
TORCH = re.compile(
    r"(^|[/\\])torch[/\\]((nn|optim|autograd|utils|cuda|amp|distributed|fx|jit|library|_\w+)[/\\]|\w+\.py$)"
)
NODE = re.compile(r"(\w+Backward\d*|AccumulateGrad)::apply\b")
# What PyTorch's own viewer leaves out as well: the interpreter, and how the stack itself was taken.
NOISE = re.compile(
    r"^(_?_?Py[A-Z_]|method_vectorcall|slot_|cfunction_|vectorcall|_?object_vacall|do_call|type_call|"
    r"run_(eval|mod)|pyrun_|pymain_|main$|subtype_dealloc|_start$|__libc_|_?_?clone|start_thread|pthread_|"
    r"execute_native_thread|torch::unwind|torch::CapturedTraceback|"
    r"torch::cuda::\(anonymous namespace\)::gather)"
)
Frame = tuple[str, int, str]  # file, line, name


@dataclass(frozen=True, eq=False)
class Stacks:
    """The frames and stacks that occur in a snapshot, and the stack of each of its events (-1 for none)."""

    frames: list[Frame]
    stacks: list[tuple[int, ...]]  # numbers of frames, the innermost first
    of_row: NDArray[np.int64]  # [rows]


def named(trace: Trace, found: Stacks, origin: NDArray[np.int64]) -> Trace:
    """The Trace, its events named by the innermost frame of the user's own; `origin` [n] is the row of each event, -1
    for those before the recording. Without any frame it stays as it is.
    """
    frames, stacks, of_row = found.frames, found.stacks, found.of_row
    if not frames:
        return trace
    names = [_name([frames[at] for at in stack]) for stack in stacks]
    operators = list(dict.fromkeys([*names, UNNAMED, BEFORE]))
    number = {name: at for at, name in enumerate(operators)}
    of_stack = np.array([*(number[name] for name in names), number[UNNAMED]], np.int32)
    stack = np.where(origin < 0, -1, of_row[origin]).astype(np.int32)
    operator = np.where(origin < 0, number[BEFORE], of_stack[stack]).astype(np.int32)
    calls = Calls(stack, tuple(stacks), tuple(_words(frame) for frame in frames))
    return replace(trace, tape=replace(trace.tape, operator=operator, operators=tuple(operators), calls=calls))


def stacks_of(rows: Sequence[Mapping[str, Any]]) -> Stacks:
    """The stacks of a snapshot's events."""
    frames: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    seen: dict[int, int] = {}  # lists are shared by many rows: each is read once
    found = np.full(len(rows), -1, np.int64)
    for at, row in enumerate(rows):
        listed = row.get("frames")
        if not isinstance(listed, list) or not listed:
            continue
        if id(listed) not in seen:
            numbers = tuple(
                frames.setdefault(frame, len(frames)) for frame in map(_frame, listed[: 4 * DEEPEST]) if frame
            )[:DEEPEST]
            seen[id(listed)] = stacks.setdefault(numbers, len(stacks)) if numbers else -1
        found[at] = seen[id(listed)]
    return Stacks(list(frames), list(stacks), found)


def _frame(item: object) -> Frame | None:
    """A frame of the file; None for what is none, or what nobody wants to read."""
    if not isinstance(item, Mapping):
        return None
    file, line, name = item.get("filename"), item.get("line"), item.get("name")
    if not isinstance(file, str) or not isinstance(name, str) or not isinstance(line, int):
        return None
    file, name = file[: 4 * LONGEST], _short(name)
    return None if not _is_python(file) and NOISE.search(name) else (file, line, name)


def _short(name: str) -> str:
    name = " ".join(name[: 4 * LONGEST].split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _is_python(file: str) -> bool:
    return file.endswith((".py", ".pyx")) or file.startswith("<") or "ipykernel" in file or file == "memsim"


def _name(stack: Sequence[Frame]) -> str:
    """The innermost frame of the user's own code, or else of a package's, of PyTorch's, of Python's own; where no
    Python called, as in backward, the node of autograd.
    """
    python = [frame for frame in stack if _is_python(frame[0])]
    if python:
        file, line, name = min(python, key=lambda frame: _rank(frame[0]))  # of equals the innermost
        return name if file == "memsim" else f"{_base(file)}:{line} {name}"
    nodes = (NODE.search(name) for _, _, name in stack)
    if node := next((node for node in nodes if node), None):
        return node[1]
    if any(name.startswith("torch::autograd::") for _, _, name in stack):
        return "autograd"
    return next((name for _, _, name in stack if not name.startswith("c10::")), stack[0][2])


def _rank(file: str) -> int:
    """How far a file is from what the user wrote."""
    if PACKAGES.search(file):
        return 2 if TORCH.search(file) else 1
    if TORCH.search(file):
        return 2
    inside = STANDARD.search(file)
    return 3 if file.startswith("<frozen ") or (inside and inside[1] in sys.stdlib_module_names) else 0


def _base(file: str) -> str:
    """The file's own name; of an __init__.py its folder's too."""
    path = PureWindowsPath(file) if "\\" in file else PurePosixPath(file)
    return path.name if path.stem != "__init__" else f"{path.parent.name}/{path.name}"


def _words(frame: Frame) -> str:
    file, line, name = frame
    where = file if file and file != "??" else ""
    return name if file == "memsim" else f"{where}:{line} {name}" if where and line else f"{where} {name}".strip()
