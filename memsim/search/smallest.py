"""Finds the least memory with which something survives, by bisection."""

from __future__ import annotations

from collections.abc import Callable

from memsim.units import MIB


def smallest(survives: Callable[[int], bool], low: int, high: int, step: int = MIB) -> int:
    """Returns the least multiple of `step` bytes above `low` at which `survives` turns true. `low` is known to fail,
    `high` to survive.

    Survival need not be monotonic in memory (garbage collection, expandable segments). The result survives, and `step`
    less does not.
    """
    fails, lives = low // step, -(-high // step)
    while lives - fails > 1:
        middle = (fails + lives) // 2
        if survives(middle * step):
            lives = middle
        else:
            fails = middle
    return lives * step
