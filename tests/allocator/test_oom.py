"""What happens when memory runs out, and what PyTorch's message says; each text is one that PyTorch 2.15.0 printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oplists import MIB, Script

from memsim.allocator import OutOfMemory, Settings, allocate, message
from memsim.errors import InputError
from memsim.traces.oplist import tape_of_operations

FULL = "CUDA out of memory. Tried to allocate 302.00 MiB. GPU 0 has a total capacity of 2.00 GiB of which "
HINT = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to "
    "avoid fragmentation.  See documentation for "
    "Memory Management  "
    "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)
EXPANDABLE = (
    " expandable_segments is enabled. If instead the process is running out of virtual address space (VSZ), "
    "expandable segments may be over-reserving VA (each "
    "segment reserves ~9/8 of device memory, times the number of streams); reduce it via PYTORCH_CUDA_ALLOC_CONF "
    "expandable_segments_reserve / "
    "expandable_segments_reserve_by_class."
)
RESERVE = (
    " This allocation exceeds the expandable-segment reserve of 204.80 MiB for this stream, and a single allocation "
    "cannot span expandable segments. Raise "
    "PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve or expandable_segments_reserve_by_class (or unset it) so "
    "that a segment is at least 302.00 MiB."
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "",
            f"{FULL}236.00 MiB is free. Of the allocated memory 1.76 GiB is allocated by PyTorch, and 12.00 MiB is "
            f"reserved by PyTorch but unallocated.{HINT}",
        ),
        (
            "per_process_memory_fraction:0.5",
            f"{FULL}1.12 GiB is free. 1024.00 MiB allowed; Of the allocated memory 900.00 MiB is allocated by PyTorch, "
            f"and 6.00 MiB is reserved by PyTorch but unallocated.{HINT}",
        ),
        (
            "expandable_segments:True",
            f"{FULL}228.00 MiB is free. Of the allocated memory 1.76 GiB is allocated by PyTorch, "
            f"and 20.00 MiB is reserved by PyTorch but unallocated.{EXPANDABLE}",
        ),
        (
            "expandable_segments:True,expandable_segments_reserve:0.1",
            f"{FULL}2.00 GiB is free. Of the allocated memory 0 bytes is allocated by PyTorch, and 0 bytes is "
            f"reserved by PyTorch but unallocated.{RESERVE}",
        ),
        (
            "throw_on_cudamalloc_oom:True",
            "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
            "per_process_memory_fraction limit. Requested size: 300.00 MiB",
        ),
    ],
)
def test_message(settings: str, said: str) -> None:
    ops = np.array([(0, i, 300 * MIB + 7, 0) for i in range(10)], np.int64)
    answer = allocate(tape_of_operations(ops), Settings.parse(settings), 2 << 30)
    assert answer.out_of_memory is not None
    assert message(answer.out_of_memory, Settings.parse(settings)) == said
    assert answer.processed == answer.out_of_memory.event + 1


def test_message_of_golden_runs(golden: Path) -> None:
    """The numbers of a recorded failure, put into words."""
    recorded = json.loads((golden / "qwen2.5-0.5b-full-oom.json").read_text())
    with np.load(golden / "qwen2.5-0.5b-full-oom.npz") as file:
        names, action, address, size = (
            [str(name) for name in file["actions"]],
            file["action"],
            file["address"].astype(np.int64),
            file["bytes"],
        )
    rows: list[tuple[int, int, int, int]] = []
    at: dict[int, int] = {}
    for code, place, count in zip(action.tolist(), address.tolist(), size.tolist(), strict=True):
        if names[code] in ("alloc", "oom"):
            at[place] = len(rows)
            rows.append((0, len(rows), count, 0))
        elif names[code] == "free_requested":
            rows.append((1, at.pop(place), 0, 0))
    answer = allocate(
        tape_of_operations(np.array(rows, np.int64)), None, int(recorded["run"]["device_memory_gib"] * 2**30)
    )
    assert answer.out_of_memory is not None
    assert answer.out_of_memory.event == at[int(address[action == names.index("oom")][0])]
    assert message(answer.out_of_memory) == recorded["oom"]


def test_older_versions_say_it_otherwise() -> None:
    oom = OutOfMemory(0, 2 * MIB, 20 * MIB, 0, 1 << 30, 1 << 29, 1 << 30)
    assert "PYTORCH_ALLOC_CONF=expandable" in message(oom, Settings(torch="2.10.0"))
    assert message(oom, Settings(torch="2.6.0", expandable_segments=True)).endswith("cuda.html#environment-variables)")


def test_goes_on_after_a_failure_unless_told_to_stop() -> None:
    script = Script()
    failed = script.alloc(60 * MIB)
    script.free(failed)
    script.alloc(2 * MIB)
    answer = script.answer(device_memory=50 * MIB)
    assert answer.address[0] == -1
    assert answer.address[1] == 0
    assert answer.address[2] > 0
    assert answer.processed == 3
    assert answer.ooms.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("size", "device"), [(-1, 1 << 30), (1 << 60, 1 << 30), (512, 0), (512, -5), (512, 1 << 60)])
def test_sizes_that_no_device_has_are_refused(size: int, device: int) -> None:
    with pytest.raises(InputError):
        allocate(tape_of_operations(np.array([(0, 0, size, 0)], np.int64)), None, device)


def test_a_device_smaller_than_a_segment_is_out_of_memory() -> None:
    answer = allocate(tape_of_operations(np.array([(0, 0, 1, 0)], np.int64)), None, 1 << 20)
    assert answer.out_of_memory is not None
    assert vars(answer.out_of_memory) == vars(OutOfMemory(0, 1, 2 * MIB, 1 << 20, 1 << 20, 0, 0, rounded=512))
