"""A model by its name on the Hugging Face hub: in the catalogue, in the local cache, or fetched, config.json alone.

Environment variables mean what they mean to huggingface_hub: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from memsim import catalog
from memsim.errors import InputError, nearest

# OWNER/NAME as the hub has them
NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
FILES = (".yaml", ".yml", ".json", ".toml", ".py")  # what ends so is a path, not a name
CONFIG = "config.json"
SHOWN = 120  # characters of another program's error
TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads a switch
EXTRA = "memsim[hub]"
OF_ITS_TEXT = "its text_config, given as a config, is simulated where the family is, without what sees or hears"
SECONDS = 10.0  # that the hub may take to begin to answer


def is_name(text: str) -> bool:
    """Whether `text` reads as a name on the hub: OWNER/NAME, and not as the path of a Run or a config."""
    return NAME.fullmatch(text) is not None and not text.lower().endswith(FILES)


def nearest_model(name: str, known: Iterable[str]) -> str:
    """What to append to an error about a model's name: what is known of it, or the nearest name."""
    word = re.sub(r"[^a-z0-9]", "", name.lower().rsplit("/", 1)[-1])
    if re.match(r"gemma3(4|12|27)b", word):
        return f"; Gemma 3 from 4B on is a vision-language model: {OF_ITS_TEXT}"
    return nearest(name, known)


@cache
def _catalogued() -> dict[str, str]:
    data: dict[str, list[str]] = json.loads((catalog.HERE / "hub.json").read_text(encoding="utf-8"))
    return {repository.lower(): name for name, repositories in data.items() for repository in repositories}


def in_catalogue(name: str) -> str | None:
    """The catalogue's name of a model of the hub whose config has the same fields; None where there is none."""
    return _catalogued().get(name.lower())


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def in_cache(name: str) -> Path | None:
    """The config.json of a model in the local cache, of the branch main or else of the one snapshot that is there."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    try:
        main = folder / "refs" / "main"
        commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        found = [folder / "snapshots" / commit / CONFIG] if commit else list(folder.glob(f"snapshots/*/{CONFIG}"))
        return found[0] if len(found) == 1 and found[0].is_file() else None
    except (OSError, ValueError):  # a folder that may not be read, bytes that are no text
        return None


def fetched(name: str) -> Path:
    """The config.json of a model of the hub, downloaded into the cache; says so in a line on stderr. Raises InputError
    that says why it cannot be had.
    """
    missing = f"{name!r} is neither in the catalogue nor in the Hugging Face cache ({cache_folder()})"
    hint = nearest_model(name, catalog.models())
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE:
        raise InputError(f"{missing}, and HF_HUB_OFFLINE keeps it from being fetched{hint}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read at import; else more is asked than config.json
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise InputError(
            f"{missing}{hint} (with `pip install '{EXTRA}'` its config.json is fetched; the path of one works too)"
        ) from None
    disable_progress_bars()
    logging.set_verbosity_error()
    endpoint = (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")
    print(f"memsim: fetching {CONFIG} of {name} from {endpoint}", file=sys.stderr, flush=True)
    try:
        path = huggingface_hub.hf_hub_download(
            name, CONFIG, cache_dir=cache_folder(), endpoint=endpoint, library_name="memsim", etag_timeout=SECONDS
        )
    except Exception as error:  # of the hub, of HTTP, of the disk: each has classes of its own
        raise InputError(f"{name!r}: {_reason(error, endpoint)}{hint}") from None
    return Path(str(path))


def _reason(error: Exception, endpoint: str) -> str:
    """Why nothing came, in words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{endpoint} gives its {CONFIG} only to those who were let in: `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no such model, or a private one (HF_TOKEN)"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{endpoint} has no {CONFIG} of it"
    inner = error.__cause__ or error
    words = " ".join(str(inner).split())[:SHOWN] or type(inner).__name__
    return f"its {CONFIG} could not be fetched from {endpoint}: {words}"


def config_file(name: str) -> Path:
    """The config.json of a model of the hub that the catalogue does not have: cached, or else fetched. Raises
    InputError.
    """
    return in_cache(name) or fetched(name)
