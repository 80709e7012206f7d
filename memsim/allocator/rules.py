"""The differences between PyTorch's releases, in the allocator and in its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memsim.errors import InputError

GOLDEN = "2.15.0"
OLDEST = (2, 1)


@dataclass(frozen=True)
class Rules:
    """The differences between PyTorch's releases."""

    # The order of free blocks of one size: by "address", by the "creation" of the block, or by that of its "segment".
    ties: str
    round_limit: bool  # a memory limit is rounded to the nearest byte instead of down
    whole_device_unlimited: bool  # a memory fraction of 1 is no limit
    last_listed_is_kept: bool  # `>` in a list of rounding divisions leaves the last entry before it unchanged
    least_split_mib: int | None  # max_split_size_mb must be more; None: it must be at least a large segment
    keeps_short_reservations: bool  # a reservation too short for its request stays, with its addresses
    keys: frozenset[str]  # settings that exist
    names_unified_variable: bool  # the message names PYTORCH_ALLOC_CONF


_ALWAYS = {
    "max_split_size_mb",
    "garbage_collection_threshold",
    "roundup_power2_divisions",
    "expandable_segments",
    "backend",
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "pinned_num_register_threads",
}
_SINCE = {  # the release that introduced a setting, by allocator.md and the sources
    (2, 6): {"max_non_split_rounding_mb", "pinned_use_background_threads"},
    (2, 9): {"graph_capture_record_stream_reuse"},
    (2, 10): {"per_process_memory_fraction", "pinned_reserve_segment_size_mb"},
    (2, 11): {
        "large_segment_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_max_cached_size_mb",
        "pinned_free_catch_all",
    },
    (2, 12): {"throw_on_cudamalloc_oom"},
    (2, 15): {"expandable_segments_reserve", "expandable_segments_reserve_by_class"},
}


def release(torch: str) -> tuple[int, int]:
    """Returns (major, minor) of a PyTorch version such as "2.15.0+cu130". Raises InputError for a version that memsim
    does not know.
    """
    found = re.match(r"(\d+)\.(\d+)(?:$|[.+a-z])", torch)
    if not found:
        raise InputError(f"torch: {torch!r} is not a PyTorch version; write it as {GOLDEN}")
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        raise InputError(f"torch: {torch} is too old; the allocator is modelled from 2.1 on")
    return version


def rules_of(torch: str) -> Rules:
    """Returns the rules of a PyTorch version. Raises InputError."""
    version = release(torch)
    return Rules(
        ties="address" if version <= (2, 11) else "creation" if version == (2, 12) else "segment",
        round_limit=version >= (2, 13),
        whole_device_unlimited=version >= (2, 10),
        last_listed_is_kept=version >= (2, 10),
        least_split_mib=20 if version <= (2, 9) else None,
        keeps_short_reservations=version < (2, 15),
        keys=frozenset(_ALWAYS.union(*(keys for since, keys in _SINCE.items() if version >= since))),
        names_unified_variable=version == (2, 10),
    )


@dataclass(frozen=True)
class Reserve:
    """The most address space that an expandable segment reserves."""

    value: float
    in_gib: bool  # otherwise a fraction of the device's memory
