"""Operation lists that PyTorch's own allocator answered: those beside this file, and the golden ones next to the
repository.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from memsim.allocator import Settings, allocate
from memsim.traces.oplist import operations_of_tape, tape_of_operations

DATA = sorted((Path(__file__).parent / "data").glob("*.npz"))


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_every_counter_equals_pytorchs_after_every_operation(path: Path) -> None:
    with np.load(path) as file:
        ops, expected, text, device = file["ops"], file["answers"], str(file["settings"]), int(file["device_memory"])
    answer = allocate(tape_of_operations(ops), Settings.parse(text), device, stop_at_oom=False)
    address = np.where(ops[:, 0] == 0, answer.address, 0)
    counted = (
        address,
        answer.reserved,
        answer.requested,
        answer.allocated,
        answer.active,
        answer.segments,
        answer.retries,
        answer.ooms,
    )
    np.testing.assert_array_equal(np.stack(counted, axis=1), expected)


def test_every_golden_list_agrees(shared: Path) -> None:
    paths = sorted((shared / "golden" / "allocator").glob("*.npz"))
    assert len(paths) >= 100
    for path in paths:
        with np.load(path) as file:
            ops, expected, text, device = (
                file["ops"],
                file["answers"],
                str(file["settings"]),
                int(file["device_memory"]),
            )
            stats = json.loads(str(file["stats"]))
        answer = allocate(tape_of_operations(ops), Settings.parse(text), device, stop_at_oom=False)
        address = np.where(ops[:, 0] == 0, answer.address, 0)
        np.testing.assert_array_equal(np.stack((address, answer.reserved), axis=1), expected, err_msg=path.name)
        assert (answer.retries[-1], answer.ooms[-1]) == (stats["retries"], stats["ooms"]), path.name
        assert answer.allocated.max() == stats["peak_allocated"], path.name


def test_an_operation_list_becomes_a_tape_and_back() -> None:
    with np.load(DATA[0]) as file:
        ops = file["ops"]
    back = operations_of_tape(tape_of_operations(ops))
    np.testing.assert_array_equal(back[:, 0], ops[:, 0])
    np.testing.assert_array_equal(back[ops[:, 0] == 0][:, 2:], ops[ops[:, 0] == 0][:, 2:])


def test_an_id_that_is_allocated_again_is_another_storage() -> None:
    tape = tape_of_operations(
        np.array([(0, 7, 512, 0), (1, 7, 0, 0), (0, 7, 1024, 0), (1, 7, 0, 0), (1, 9, 0, 0)], np.int64)
    )
    assert tape.storage.tolist() == [0, 0, 1, 1, -1]
    assert tape.bytes.tolist() == [512, 512, 1024, 1024, 0]
    assert allocate(tape).address[4] == 0
