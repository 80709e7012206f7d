"""Temporaries of torch.nonzero, as PyTorch asked for them on the virtual GPU: of the count, and of the choice."""

from __future__ import annotations

import pytest

from memsim.machine.kernels import platform_for

RECORDED = [  # compute capability, elements, bytes of DeviceReduce::Sum, bytes of DeviceSelect::Flagged
    (80, 1, 1, 1023),
    (80, 4096, 1, 1023),
    (80, 4097, 4607, 1023),
    (80, 1_000_000, 4607, 4351),
    (80, 1_000_000_000, 4607, 3_473_151),
    (86, 100_000, 3839, 2047),
    (89, 1_000_000_000, 5375, 12_500_991),
    (90, 10_000_000, 5631, 19_711),
    (100, 1_000_000_000, 6399, 2_273_535),
    (103, 10_000_000, 6399, 23_551),
    (120, 1_000_000_000, 7167, 2_273_535),
]


@pytest.mark.parametrize(("sm", "elements", "counted", "chosen"), RECORDED)
def test_temporaries_are_those_recorded(sm: int, elements: int, counted: int, chosen: int) -> None:
    stack = platform_for(sm)
    assert (stack.sum_bytes(elements), stack.select_bytes(elements)) == (counted, chosen)
