"""The values that the key `checkpointing` of a Run may have: a name, or a mapping with one key. passes/checkpoint.py
says what each does.
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.units import read_bytes

NAMES = ("none", "full", "reentrant", "sqrt", "selective", "megatron", "offload")
OF_A_LAYER = ("none", "full", "reentrant", "selective", "megatron", "offload")  # those that a plan may give to layers
MAPPINGS = {
    "every": "k",
    "first": "k",
    "segments": "n",
    "save": "[matmul, attention]",
    "plan": "[[8, full], [24, none]]",
    "budget": "24GiB",
}
FORMS = f"{', '.join(NAMES)}, {', '.join(f'{{{key}: {value}}}' for key, value in MAPPINGS.items())}"
Strategy = str | dict[str, object]


def read_strategy(value: object) -> Strategy:
    """Checks the value of the key, as far as that is possible without a model, and returns it. Raises ValueError that
    says what would be valid.
    """
    if isinstance(value, str) and value in NAMES:
        return value
    if isinstance(value, bool):
        said = "full, or reentrant where use_reentrant is true" if value else "none"
        raise ValueError(f"{value} is not a strategy; write {said} (there are {FORMS})")
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in MAPPINGS:
        raise ValueError(f"{_show(value)} is not a strategy; there are {FORMS}")
    ((key, inner),) = value.items()
    if key in ("every", "first", "segments"):
        return {key: _count(key, inner)}
    if key == "save":
        names = [inner] if isinstance(inner, str) else inner
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"save: {_show(inner)} is not a list of operators such as [matmul, attention]")
        return {key: list(dict.fromkeys(names))}
    if key == "plan":
        return {key: _plan(inner)}
    read_bytes(inner)
    return {key: inner}


def _count(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{key}: {_show(value)} is not a whole number of layers from 1"
            if key != "segments"
            else f"{key}: {_show(value)} is not a whole number from 1"
        )
    return value


def _plan(value: object) -> list[object]:
    rows: list[object] = []
    for row in value if isinstance(value, (list, tuple)) else ():
        if not isinstance(row, (list, tuple)) or len(row) != 2:
            rows.clear()
            break
        strategy = read_strategy(row[1])
        if not (strategy in OF_A_LAYER if isinstance(strategy, str) else "save" in strategy):
            raise ValueError(
                f"plan: {_show(row[1])} is not a strategy of single layers; {', '.join(OF_A_LAYER)} and {{save: "
                f"[matmul]}} are"
            )
        rows.append([_count("plan", row[0]), strategy])
    if not rows:
        raise ValueError(
            f"plan: {_show(value)} is not a list of pairs of layers and strategy such as [[8, full], [24, none]]"
        )
    return rows


def in_words(strategy: Strategy) -> str:
    """Writes the strategy as it stands in a Run."""
    return strategy if isinstance(strategy, str) else _show(strategy)


def names_of(strategy: Strategy) -> tuple[str, ...]:
    """Returns the name of the strategy, or the key of its mapping. For a plan, the names of its layers' strategies
    follow.
    """
    if isinstance(strategy, str):
        return (strategy,)
    ((key, inner),) = strategy.items()
    rows = [row[1] for row in inner] if key == "plan" else []  # type: ignore[attr-defined]
    return tuple(dict.fromkeys((key, *(name for row in rows for name in names_of(row)))))


def _show(value: object) -> str:
    """Writes the value as YAML in flow style, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_show(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_show, value))}]"
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else repr(value)
