"""Operation lists for the allocator's tests: written by hand, and drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from memsim.allocator import Answer, DriverAction, Settings, allocate
from memsim.traces.oplist import tape_of_operations

MIB = 2**20
BASE = 0x700000000000
EDGES = (512, 1024, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 21 * MIB, 32 * MIB, 40 * MIB, 64 * MIB)


class Script:
    """Writes an operation list: alloc() gives an id, which free() and use() take."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int]] = []
        self.ids = 0

    def alloc(self, size: int, stream: int = 0) -> int:
        """Allocates."""
        self.rows.append((0, self.ids, size, stream))
        self.ids += 1
        return self.ids - 1

    def free(self, *ids: int) -> None:
        """Frees one after the other."""
        self.rows.extend((1, identity, 0, 0) for identity in ids)

    def use(self, identity: int, stream: int) -> None:
        """record_stream."""
        self.rows.append((3, identity, 0, stream))

    def empty(self) -> None:
        """empty_cache."""
        self.rows.append((2, 0, 0, 0))

    def answer(self, settings: str = "", device_memory: int = 80 << 30) -> Answer:
        """What the allocator answers."""
        return allocate(
            tape_of_operations(np.array(self.rows, np.int64)),
            Settings.parse(settings),
            device_memory,
            stop_at_oom=False,
        )


def calls(answer: Answer) -> list[tuple[str, int, int]]:
    """The driver calls: action, address from the first address on, bytes."""
    rows = zip(answer.driver_action.tolist(), answer.driver_address.tolist(), answer.driver_bytes.tolist(), strict=True)
    return [(DriverAction(action).name, address - BASE, size) for action, address, size in rows]


@st.composite
def settings_strings(draw: st.DrawFn) -> str:
    """Any combination of the settings that PyTorch 2.15 accepts."""
    large = draw(st.sampled_from((20, 20, 20, 12, 32)))
    choices = {
        "large_segment_size_mb": [str(large)] if large != 20 else [],
        "max_split_size_mb": [str(max(large, size)) for size in (20, 33, 64)],
        "max_non_split_rounding_mb": [str(max(large, size)) for size in (20, 40)],
        "roundup_power2_divisions": ["4", "16", "[1:2,8:8,>:4]", "[32:0,64:16]"],
        "garbage_collection_threshold": ["0.3", "0.7"],
        "expandable_segments": ["True"],
        "expandable_segments_reserve": ["0.2", "0.6"],
        "per_process_memory_fraction": ["0.5", "0.9"],
        "throw_on_cudamalloc_oom": ["True"],
    }
    chosen = [
        f"{key}:{draw(st.sampled_from(values))}"
        for key, values in choices.items()
        if values and draw(st.integers(0, 2)) == 0
    ]
    if large != 20 and not any(part.startswith("large") for part in chosen):
        chosen.append(f"large_segment_size_mb:{large}")
    return ",".join(chosen)


@st.composite
def operation_lists(draw: st.DrawFn) -> NDArray[np.int64]:
    """Up to 60 operations on up to three streams, sizes around the thresholds."""
    rows: list[tuple[int, int, int, int]] = []
    live: list[int] = []
    streams = draw(st.integers(1, 3))
    for i in range(draw(st.integers(1, 60))):
        dice = draw(st.integers(0, 19))
        if dice == 0:
            rows.append((2, 0, 0, 0))
        elif dice < 7 and live:
            rows.append((1, live.pop(draw(st.integers(0, len(live) - 1))), 0, 0))
        elif dice < 9 and live:
            rows.append((3, draw(st.sampled_from(live)), 0, draw(st.integers(0, streams - 1))))
        else:
            size = draw(st.sampled_from(EDGES)) + draw(st.sampled_from((-512, -1, 0, 0, 1, 512)))
            rows.append((0, i, size, draw(st.integers(0, streams - 1))))
            live.append(i)
    return np.array(rows, np.int64)
