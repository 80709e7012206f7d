"""Recorder files, Tapes made of them, and event sequences."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from memsim.allocator import allocate
from memsim.allocator.settings import Settings
from memsim.errors import InputError
from memsim.tape import Action, Category, Tape
from memsim.traces import recorder
from memsim.traces.recorder import ACTIONS, Recording
from memsim.validation import sequences as ev

EXACT = ["qwen2.5-0.5b-full", "qwen2.5-0.5b-full-oom", "qwen2.5-0.5b-full-tight", "llama3.2-1b-full-eager"]


def recording(
    *events: tuple[str, int, int], phases: tuple[str, ...] = ("load",), phase: list[int] | None = None
) -> Recording:
    """A Recording of (action, address, bytes)."""
    n = len(events)
    return Recording(
        np.array([ACTIONS.index(action) for action, _, _ in events], np.uint8),
        np.array([address for _, address, _ in events], np.int64),
        np.array([count for _, _, count in events], np.int64),
        np.zeros(n, np.int64),
        np.array(phase if phase is not None else [0] * n, np.int32),
        phases,
    )


def save(path: Path, recorded: Recording, **changes: object) -> Path:
    """The Recording as the recorder writes it, with some arrays changed (None: left out)."""
    arrays: dict[str, object] = {
        key: getattr(recorded, key) for key in ("action", "address", "bytes", "stream", "phase")
    }
    arrays |= {"actions": np.array(ACTIONS), "phases": np.array(recorded.phases), **changes}
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


LITTLE = recording(
    ("segment_alloc", 4096, 2 << 20),
    ("alloc", 4096, 100),
    ("alloc", 4608, 600),
    ("free_requested", 4096, 100),
    ("free_completed", 4096, 100),
    ("alloc", 4096, 50),
    ("free_requested", 4608, 600),
    ("free_completed", 4608, 600),
)


def tape(*requests: tuple[Action, int, int]) -> Tape:
    """A Tape of (action, storage, bytes)."""
    n = len(requests)
    return Tape(
        np.array([action for action, _, _ in requests], np.uint8),
        np.array([storage for _, storage, _ in requests], np.int64),
        np.array([count for _, _, count in requests], np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int32),
        np.zeros(n, np.int32),
        np.full(n, 3, np.int32),
        np.full(n, Category.UNATTRIBUTED, np.uint8),
        ("0/forward",),
        ("self_attn.q_proj",),
    )


def test_a_recorder_file_reads_back(tmp_path: Path) -> None:
    back = recorder.load(save(tmp_path / "a.npz", LITTLE))
    for key in ("action", "address", "bytes", "stream", "phase"):
        assert getattr(back, key).tolist() == getattr(LITTLE, key).tolist(), key
    assert back.phases == ("load",)


def test_actions_in_another_order_mean_the_same(tmp_path: Path) -> None:
    names = list(reversed(ACTIONS))
    moved = np.array([names.index(ACTIONS[code]) for code in LITTLE.action], np.uint8)
    assert (
        recorder.load(save(tmp_path / "a.npz", LITTLE, action=moved, actions=np.array(names))).action.tolist()
        == LITTLE.action.tolist()
    )


def test_ordinals_count_allocs_and_follow_addresses_that_are_reused() -> None:
    assert recorder.ordinals(LITTLE).tolist() == [-1, 0, 1, 0, 0, 2, 1, 1]


def test_to_tape_numbers_storages_in_order_of_their_alloc_and_attributes_nothing() -> None:
    made = recorder.to_tape(LITTLE)
    assert made.action.tolist() == [Action.ALLOC, Action.ALLOC, Action.FREE, Action.ALLOC, Action.FREE]
    assert made.storage.tolist() == [0, 1, 0, 2, 1]
    assert made.bytes.tolist() == [100, 600, 100, 50, 600]
    assert set(made.category.tolist()) == {Category.UNATTRIBUTED} and set(made.layer.tolist()) == {-1}


def test_to_tape_makes_an_oom_the_alloc_that_failed() -> None:
    made = recorder.to_tape(
        recording(
            ("alloc", 512, 8),
            ("oom", 77, 1024),
            ("free_requested", 512, 8),
            ("free_completed", 512, 8),
            ("alloc", 512, 9),
        )
    )
    assert made.action.tolist() == [Action.ALLOC, Action.ALLOC, Action.FREE, Action.ALLOC]
    assert made.storage.tolist() == [0, 1, 0, 2]


def test_an_empty_recording_is_an_empty_tape(tmp_path: Path) -> None:
    empty = recorder.load(save(tmp_path / "a.npz", recording()))
    assert len(recorder.to_tape(empty)) == 0 and len(ev.of_recording(empty)) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phase": None}, "phase: missing"),
        ({"bytes": np.zeros(3, np.int64)}, "bytes: has shape (3,)"),
        ({"bytes": np.full(8, -5)}, "bytes: has values outside"),
        ({"stream": np.full(8, 2**63, np.uint64)}, "stream: has values outside"),
        ({"action": np.full(8, 200, np.uint8)}, "action: has values outside 0 … 8"),
        ({"phase": np.full(8, 1)}, "phase: has values outside 0 … 0"),
        ({"action": np.zeros(8)}, "action: is not a list of whole numbers"),
        ({"action": np.zeros((8, 1), np.uint8)}, "action: is not a list"),
        ({"actions": np.array(["alloc", "explode"])}, "actions: 'explode' is not an action"),
        ({"phases": np.array([object()], object)}, "is not a recording"),
        ({"address": np.array([{}] * 8, object)}, "is not a recording"),
    ],
)
def test_a_hostile_array_gets_one_line_that_names_it(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = save(tmp_path / "a.npz", LITTLE, **changes)
    with pytest.raises(InputError) as caught:
        recorder.load(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_npz_gets_one_line(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npz", LITTLE).read_bytes()
    single = io.BytesIO()
    np.save(single, np.arange(3))
    junk = io.BytesIO()
    with zipfile.ZipFile(junk, "w") as file:
        file.writestr("action.npy", b"not an array")
    for content in (
        b"",
        b"hello",
        b"PK\x03\x04",
        good[: len(good) // 2],
        good[:-30],
        single.getvalue(),
        junk.getvalue(),
    ):
        path = tmp_path / "bad.npz"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            recorder.load(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            recorder.load(path)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 400), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    path = save(tmp_path_factory.mktemp("flip") / "a.npz", LITTLE)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        recorder.to_tape(recorder.load(path))
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([("alloc", 512, 8), ("alloc", 512, 8)], "event 1: address 512 is allocated while it is in use"),
        ([("free_requested", 512, 8)], "event 0: address 512 is freed while it is not allocated"),
        (
            [("alloc", 512, 8), ("free_completed", 512, 8)],
            "event 1: address 512 completes a free that was not requested",
        ),
    ],
)
def test_a_recording_that_contradicts_itself_is_refused(events: list[tuple[str, int, int]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ev.of_recording(recording(*events))


def test_the_driver_is_called_before_the_alloc_that_it_serves_and_a_free_is_two_events() -> None:
    requests = tape((Action.ALLOC, 7, 100), (Action.ALLOC, 2, 3 << 20), (Action.FREE, 7, 100))
    made = ev.of_simulation(requests, allocate(requests))
    assert [made.describe(event) for event in range(len(made))] == [
        "segment_alloc",
        "alloc #0",
        "segment_alloc",
        "alloc #1",
        "free_requested #0",
        "free_completed #0",
    ]
    assert made.bytes.tolist() == [2 << 20, 100, 20 << 20, 3 << 20, 100, 100]
    assert made.address[0] == made.address[1] == made.address[4] == made.address[5]
    assert made.place(0) == "0/forward layer 3 self_attn.q_proj"


def test_a_failing_alloc_is_an_oom_with_rounded_bytes_and_the_free_memory() -> None:
    requests = tape(
        (Action.ALLOC, 0, 100), (Action.FREE, 0, 100), (Action.ALLOC, 1, (30 << 20) + 1), (Action.ALLOC, 2, 5)
    )
    made = ev.of_simulation(requests, allocate(requests, device_memory=16 << 20))
    assert [made.describe(event) for event in range(len(made))][-2:] == ["segment_free", "oom"]
    assert made.bytes[-1] == (30 << 20) + 512 and made.address[-1] == 16 << 20
    assert ev.until_out_of_memory(made).action.tolist() == made.action.tolist()


def test_an_oom_has_the_bytes_that_the_settings_round_a_request_to() -> None:
    requests = tape((Action.ALLOC, 0, 100), (Action.ALLOC, 1, (33 << 20) + 1))
    made = ev.of_simulation(
        requests, allocate(requests, Settings.parse("roundup_power2_divisions:4"), device_memory=16 << 20)
    )
    assert made.describe(len(made) - 1) == "oom" and made.bytes[-1] == 40 << 20


def test_a_request_that_is_rejected_is_no_event() -> None:
    """throw_on_cudamalloc_oom: nothing is tried, and nothing recorded."""
    requests = tape((Action.ALLOC, 0, 100), (Action.ALLOC, 1, 30 << 20))
    settings = Settings.parse("throw_on_cudamalloc_oom:True,per_process_memory_fraction:1.0")
    answer = allocate(requests, settings, device_memory=16 << 20)
    assert answer.out_of_memory is not None and answer.out_of_memory.rejected
    assert ev.of_simulation(requests, answer).action.tolist() == [
        ACTIONS.index("segment_alloc"),
        ACTIONS.index("alloc"),
    ]


def test_events_after_the_first_oom_are_left_out() -> None:
    whole = ev.of_recording(recording(("alloc", 512, 8), ("oom", 77, 1024), ("free_requested", 512, 8)))
    assert len(ev.until_out_of_memory(whole)) == 2


def test_until_step_cuts_where_a_later_step_begins() -> None:
    whole = ev.of_recording(
        recording(
            ("alloc", 1, 8),
            ("alloc", 2, 8),
            ("alloc", 3, 8),
            ("alloc", 4, 8),
            phases=("load", "0/forward", "1/forward", "2/forward"),
            phase=[0, 1, 2, 3],
        )
    )
    assert [len(ev.until_step(whole, last)) for last in (0, 1, 2, 9)] == [2, 3, 4, 4]


def test_the_first_difference_is_of_action_bytes_or_alloc_and_of_addresses_where_asked() -> None:
    base = ev.of_recording(LITTLE)
    assert ev.first_difference(base, base) is None
    for at, key, value in ((1, "bytes", 101), (3, "action", ACTIONS.index("alloc")), (6, "ordinal", 2)):
        column = getattr(base, key).copy()
        column[at] = value
        assert ev.first_difference(base, replace(base, **{key: column})) == at
    moved = replace(base, address=base.address + 512)
    assert ev.first_difference(base, moved) is None and ev.first_difference(base, moved, addresses=True) == 0


def test_a_sequence_that_ends_early_differs_where_it_ends() -> None:
    base = ev.of_recording(LITTLE)
    assert ev.first_difference(base, ev.head(base, 5)) == 5 == ev.first_difference(ev.head(base, 5), base)


@pytest.mark.parametrize("name", EXACT)
def test_the_allocator_repeats_a_recording_event_by_event_addresses_included(golden: Path, name: str) -> None:
    recorded = recorder.load(golden / f"{name}.npz")
    memory = int(json.loads((golden / f"{name}.json").read_text())["run"]["device_memory_gib"] * 2**30)
    requests = recorder.to_tape(recorded)
    ours = ev.of_simulation(requests, allocate(requests, device_memory=memory))
    assert ev.first_difference(ours, ev.until_out_of_memory(ev.of_recording(recorded)), addresses=True) is None
