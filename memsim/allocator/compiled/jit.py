"""Numba's njit for code that runs everywhere: where nothing can be cached, and where compiling is switched off."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numba

# What a cache that is full, read-only or broken raises.
UNUSABLE = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, ImportError, pickle.PickleError)


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba.njit. Where no folder takes what is compiled, it is compiled anew in each process; and NUMBA_DISABLE_JIT,
    with which code is debugged, is for a user's functions and not for these, which would take minutes.
    """
    settings: Any = numba.config

    def compiled(function: Callable[..., Any]) -> Any:
        switched_off, settings.DISABLE_JIT = settings.DISABLE_JIT, 0
        try:
            made = numba.njit(**options)(function)
        except RuntimeError:  # no folder to cache in
            made = numba.njit(**{key: value for key, value in options.items() if key != "cache"})(function)
        finally:
            settings.DISABLE_JIT = switched_off
        cache = getattr(made, "_cache", None)
        for name in ("save_overload", "load_overload"):
            if hasattr(cache, name):
                setattr(cache, name, _tried(getattr(cache, name)))
        return made

    return compiled


def _tried(use: Callable[..., Any]) -> Callable[..., Any]:
    """The use of a cache, which gives None where the cache cannot be used."""

    def tried(*arguments: Any) -> Any:
        try:
            return use(*arguments)
        except UNUSABLE:
            return None

    return tried
