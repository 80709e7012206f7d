"""The columns that the page carries hold the whole Timeline."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
from made import Writer, random_tape, training
from numpy.typing import NDArray

from memsim.allocator import allocate
from memsim.report.pack import ALLOC, NOTHING, columns, pack
from memsim.results.answers import Timeline
from memsim.tape import Tape


def unpack(text: str) -> dict[str, NDArray[np.generic]]:
    """What the page's script does with the text."""
    data = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    return {row["name"]: np.frombuffer(data, row["type"], row["length"], 4 + length + row["offset"]) for row in header}


@pytest.mark.parametrize("tape", [training(), random_tape(3), Writer().tape()], ids=["training", "random", "empty"])
def test_the_counters_can_be_rebuilt(tape: Tape) -> None:
    timeline = Timeline(tape, allocate(tape))
    back = unpack(pack(columns(timeline)))
    alive: dict[int, int] = {}
    born, allocated, reserved = 0, [], []
    for code in back["code"].tolist():
        if code == ALLOC:
            alive[born] = int(back["kind_block"][back["kind"][born]])
            born += 1
        elif code != NOTHING:
            del alive[born - 1 - code]
        allocated.append(sum(alive.values()))
    for event in range(len(tape)):
        reserved.append((back["driver_sign"] * back["driver_bytes"])[back["driver_event"] <= event].sum())
    assert allocated == timeline.answer.allocated.tolist()
    assert reserved == timeline.answer.reserved.tolist()
    assert back["operator"].tolist() == tape.operator.tolist()
    assert back["layer"].tolist() == tape.layer.tolist()


def test_an_allocation_that_failed_is_nothing() -> None:
    tape = training(steps=2)
    timeline = Timeline(tape, allocate(tape, device_memory=40 << 20))
    assert timeline.out_of_memory
    back = columns(timeline)
    assert len(back["code"]) == timeline.answer.processed
    assert back["code"][-1] == NOTHING


def test_equal_timelines_give_equal_text() -> None:
    tape = training()
    assert pack(columns(Timeline(tape, allocate(tape)))) == pack(columns(Timeline(tape, allocate(tape))))
