"""Timeline: peaks by step, what was alive, the block map, the headline."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made import MIB, Writer, random_tape, training
from oplists import Script

import memsim
from memsim.allocator import allocate
from memsim.allocator.answer import Answer, DriverAction
from memsim.results.answers import Timeline
from memsim.tape import Category, Tape
from memsim.timeline.about import About
from memsim.timeline.steps import spans
from memsim.traces import recorder
from memsim.traces.oplist import tape_of_operations
from memsim.traces.replay import replay
from memsim.units import gib

GIB = 2**30
RECORDED = (
    "qwen2.5-0.5b-full",
    "qwen2.5-0.5b-full-accum4-clip",
    "qwen2.5-0.5b-full-oom",
    "qwen2.5-0.5b-full-tight",
    "llama3.2-1b-lora16-ckpt",
    "mistral-7b-full-ckpt-fused",
    "gpt2-lora16",
    "qwen2.5-72b-lora16-ckpt",
)


def timeline(tape: Tape, memory: int = 80 * GIB, about: About | None = None) -> Timeline:
    return Timeline(tape, allocate(tape, device_memory=memory), about or About())


def requests(script: Script) -> Tape:
    return tape_of_operations(np.array(script.rows, np.int64))


@pytest.mark.parametrize("name", RECORDED)
def test_steps_equal_what_pytorch_counted(golden: Path, name: str) -> None:
    recorded = json.loads((golden / f"{name}.json").read_text())
    tape = recorder.to_tape(recorder.load(golden / f"{name}.npz"))
    simulated = timeline(tape, int(recorded["run"]["device_memory_gib"] * GIB)).to_json()
    assert simulated["steps"] == recorded["steps"]
    assert simulated["loaded_allocated"] == recorded["loaded_allocated"]
    if recorded["oom"] is None:
        assert simulated["oom"] is None
    else:
        assert recorded["oom"].startswith(simulated["oom"])


def test_gradient_accumulation_takes_the_last_micro_batch() -> None:
    tape = training(steps=1, accumulation=3)
    cut = spans(tape)
    assert [span.kind for span in cut] == ["load", *["forward", "backward"] * 3, "optimizer"]
    found = timeline(tape)
    last = [span for span in cut if span.kind == "forward"][-1]
    start = cut[1].start
    assert found.steps[0].peak_after_forward == found.answer.allocated[start - 1 : last.stop].max()


def test_a_step_begins_with_the_level_that_it_finds() -> None:
    write = Writer()
    storage = write.alloc(30 * MIB)
    write.enter("0/forward")
    write.free(storage)
    write.enter("0/optimizer")
    write.free(write.alloc(MIB))
    step = timeline(write.tape()).steps[0]
    assert (step.peak_allocated, step.peak_after_forward, step.peak_after_backward) == (30 * MIB, 30 * MIB, None)
    assert step.end_allocated == 0
    assert "peak_after_backward" not in step.to_json()


def test_a_step_that_runs_out_of_memory_is_not_among_the_steps() -> None:
    tape = training(steps=2)
    whole = timeline(tape)
    short = timeline(tape, whole.steps[0].peak_reserved)
    assert [step.step for step in whole.steps] == [0, 1]
    assert short.out_of_memory
    assert [step.step for step in short.steps] == [0]
    both = Timeline(tape, short.answer, unlimited=whole.answer)
    assert both.peak_reserved == whole.peak_reserved
    assert both.steps == short.steps
    assert both.steps_needed == whole.steps


def test_an_empty_tape_has_a_timeline() -> None:
    empty = timeline(Writer().tape())
    assert (empty.peak_reserved, empty.steps, empty.spans, empty.loaded_allocated) == (0, (), (), 0)


def test_the_peak_by_category_and_layer() -> None:
    found = timeline(training())
    peak = found.at_peak()
    assert found.tape.phases[found.tape.phase[peak.event]] == peak.phase == "1/backward"
    assert peak.by_category[Category.WEIGHTS] == 5 * MIB + 1000 + 3 * (3 * MIB + 8)
    assert peak.by_layer[1] == {Category.WEIGHTS: 3 * MIB + 8, Category.ACTIVATIONS: 2 * MIB + 77}
    assert peak.largest[0].total == 3 * (6 * MIB + 16)
    weights = next(alive for alive in peak.largest if alive.operator == "proj.weight")
    assert (weights.count, weights.layers, weights.phase, weights.total) == (3, (0, 1, 2), "load", 3 * (3 * MIB + 8))


def test_an_event_outside_the_timeline_is_refused() -> None:
    found = timeline(training())
    with pytest.raises(IndexError, match="event 9999"):
        found.alive_at(9999)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_every_moment_adds_up(seed: int) -> None:
    found = timeline(random_tape(seed))
    assert (found.unsplit >= 0).all()
    for event in (0, 57, 120, len(found.tape) - 1):
        moment, answer = found.alive_at(event), found.answer
        assert sum(moment.by_category.values()) + moment.unsplit == moment.allocated == answer.allocated[event]
        assert (
            sum(sum(kinds.values()) for kinds in moment.by_layer.values())
            == moment.requested
            == answer.requested[event]
        )
        assert {kind: int(curve[event]) for kind, curve in found.curves.items() if curve[event]} == {
            k: v for k, v in moment.by_category.items() if v
        }
        blocks, parts = found.block_map(event), found.fragmentation_at(event)
        assert blocks.segment_bytes.sum() == blocks.bytes.sum() == answer.reserved[event]
        assert len(blocks.segment_bytes) == answer.segments[event]
        assert blocks.bytes[~blocks.free].sum() == answer.allocated[event]
        assert (np.diff(blocks.address) >= blocks.bytes[:-1]).all()
        assert (blocks.address >= blocks.segment_address[blocks.segment]).all()
        assert (blocks.address + blocks.bytes <= (blocks.segment_address + blocks.segment_bytes)[blocks.segment]).all()
        assert parts.reserved - parts.allocated == parts.cached_segments + parts.free_in_used_segments + parts.waiting


def answer_of(addresses: list[int], blocks: list[int], driver: list[tuple[int, DriverAction, int, int]]) -> Answer:
    """An Answer of which only addresses, blocks and driver calls matter."""
    n, zeros = len(addresses), np.zeros(len(addresses), np.int64)
    calls = np.array(driver, np.int64).reshape(-1, 4)
    counters = dict.fromkeys(("requested", "allocated", "active", "reserved", "segments", "retries", "ooms"), zeros)
    return Answer(
        address=np.array(addresses),
        block=np.array(blocks),
        **counters,
        driver_event=calls[:, 0],
        driver_action=calls[:, 1].astype(np.uint8),
        driver_address=calls[:, 2],
        driver_bytes=calls[:, 3],
        processed=n,
        out_of_memory=None,
    )


def test_mapped_pages_that_touch_are_one_segment_and_unmapping_splits_it() -> None:
    write = Writer()
    first = write.alloc(8 * MIB)
    write.alloc(4 * MIB)
    write.free(first)
    base, page = 1 << 40, 4 * MIB
    map_, unmap = DriverAction.SEGMENT_MAP, DriverAction.SEGMENT_UNMAP
    calls = [(0, map_, base, 2 * page), (1, map_, base + 2 * page, 2 * page), (2, unmap, base + page, page)]
    found = Timeline(write.tape(), answer_of([base, base + 2 * page, base], [8 * MIB, 4 * MIB, 8 * MIB], calls))
    before, after = found.block_map(1), found.block_map(2)
    assert before.segment_bytes.tolist() == [4 * page]
    assert before.storage.tolist() == [0, 1, -1]
    assert (after.segment_address - base).tolist() == [0, 2 * page]
    assert after.storage.tolist() == [-1, 1, -1]


def test_an_address_that_the_driver_gives_twice_is_one_segment() -> None:
    write = Writer()
    write.free(write.alloc(2 * MIB))
    write.alloc(2 * MIB)
    base = 1 << 40
    calls = [
        (0, DriverAction.SEGMENT_ALLOC, base, 2 * MIB),
        (2, DriverAction.SEGMENT_FREE, base, 2 * MIB),
        (2, DriverAction.SEGMENT_ALLOC, base, 4 * MIB),
    ]
    found = Timeline(write.tape(), answer_of([base, base, base], [2 * MIB] * 3, calls))
    assert found.block_map(1).storage.tolist() == [-1]
    assert found.block_map(2).segment_bytes.tolist() == [4 * MIB]
    assert found.block_map(2).storage.tolist() == [1, -1]


def test_a_free_that_waits_for_another_stream_holds_its_block_until_the_next_allocation() -> None:
    write = Writer()
    used = write.alloc(2 * MIB)
    write.record_stream(used, 7)
    write.free(used)
    write.alloc(512)
    base = 1 << 40
    calls = [(0, DriverAction.SEGMENT_ALLOC, base, 2 * MIB), (3, DriverAction.SEGMENT_ALLOC, base + 2 * MIB, 2 * MIB)]
    found = Timeline(write.tape(), answer_of([base, 0, base, base + 2 * MIB], [2 * MIB, 0, 2 * MIB, 512], calls))
    assert found.fragmentation_at(2).waiting == 2 * MIB
    assert found.alive_at(2).by_category == {}
    assert found.fragmentation_at(3).waiting == 0
    assert found.fragmentation_at(3).cached_segments == 2 * MIB


DEVICES = (("Small", 24 * GIB), ("Middle", 80 * GIB), ("Large", 192 * GIB))


def test_the_headline_of_a_run_that_fits() -> None:
    found = timeline(training(), about=About(device="A100-80GB", device_memory=80 * GIB, devices=DEVICES))
    assert found.headline().startswith("Peak 98.0 MiB reserved (70.0 MiB allocated): fits one A100-80GB with 79.90 GiB")
    assert "allocated): fits one A100-80GB with 79." in found.headline()
    assert found.headline().endswith("Optimizer state holds 26 % of the peak, logits and loss 23 %.")


COUNTED = "the 23.64 GiB that PyTorch sees, less 0.65 GiB of CUDA context"


@pytest.mark.parametrize(
    ("spare", "verdict", "words"),
    [
        (512 * MIB, "fits", f"fits one Card with 0.500 GiB to spare of {COUNTED}"),
        (512 * MIB - 1, "tight", f"fits one Card, but tightly: 0.500 GiB to spare of {COUNTED}"),
        (0, "tight", f"fits one Card, but tightly: 0.000 GiB to spare of {COUNTED}"),
        (80 * GIB, "fits", f"fits one Card with 80.00 GiB to spare of {COUNTED}"),
    ],
)
def test_a_run_with_less_than_half_a_gib_to_spare_is_tight(spare: int, verdict: str, words: str) -> None:
    tape = training()
    memory = Timeline(tape, allocate(tape)).peak_reserved + spare
    found = timeline(tape, memory, About(device="Card", device_memory=memory, counted=COUNTED))
    assert (found.verdict, found.out_of_memory) == (verdict, False)
    assert f"allocated): {words}." in found.headline()
    data = found.to_json()
    assert (data["fits"], data["verdict"], data["device_memory"]) == (True, verdict, memory)
    assert data["device_memory_counted"] == COUNTED


def test_a_run_with_less_than_3_percent_to_spare_is_tight() -> None:
    script = Script()
    script.alloc(97 * GIB)
    for memory, verdict in ((100 * GIB, "fits"), (100 * GIB + 1, "fits"), (100 * GIB - 2 * MIB, "tight")):
        assert timeline(requests(script), memory, About(device_memory=memory)).verdict == verdict


def test_a_run_that_gives_back_its_cache_is_tight_and_nothing_is_known_without_a_device() -> None:
    tape = training()
    assert timeline(tape).verdict is None and timeline(tape).to_json()["device_memory_counted"] is None
    script = Script()
    first = script.alloc(3 * GIB)
    script.free(first)
    script.alloc(4 * GIB)
    found = timeline(requests(script), 6 * GIB, About(device_memory=6 * GIB))
    assert (found.peak_reserved, found.retries, found.verdict) == (4 * GIB, 1, "tight")
    assert "fits 6 GiB of device memory, but only by giving back its cache 1 time." in found.headline()


def test_a_memory_fraction_leaves_less_to_spare() -> None:
    script = Script()
    script.alloc(4 * GIB)
    settings = "per_process_memory_fraction:0.5"
    found = Timeline.of(replay(requests(script), settings, 10 * GIB))
    assert (found.room, found.spare, found.verdict) == (5 * GIB, GIB, "fits")
    assert "fits 10 GiB of device memory with 1.00 GiB to spare of the 5.00 GiB that per_process_memory_fraction " in (
        found.headline()
    )
    assert replay(requests(script), settings, 9 * GIB).verdict == "fits"
    assert replay(requests(script), settings, 9 * GIB - 4 * MIB).verdict == "tight"
    assert replay(requests(script), settings, 7 * GIB).verdict == "no"


def test_what_does_not_fit_says_what_was_counted_and_pytorch_reports_the_context_too() -> None:
    tape = training()
    whole = allocate(tape, device_memory=80 * GIB)
    memory = int(whole.allocated.max()) - 10 * MIB
    about = About(device="Card", device_memory=memory, counted=COUNTED, context=666 * MIB)
    found = Timeline(tape, allocate(tape, device_memory=memory), about, whole)
    data = found.to_json()
    assert (data["fits"], data["verdict"]) == (False, "no")
    assert f"does not fit one Card ({COUNTED})." in found.headline()
    assert f"total capacity of {(memory + 666 * MIB) / MIB:.2f} MiB of which 10.01 MiB is free" in str(data["oom"])


def test_the_headline_of_a_run_that_does_not_fit_names_what_would_hold_it() -> None:
    tape = training()
    whole = allocate(tape, device_memory=80 * GIB)
    memory = int(whole.allocated.max()) - 10 * MIB
    about = About(device="Tiny", device_memory=memory, devices=DEVICES)
    found = Timeline(tape, allocate(tape, device_memory=memory), about, whole)
    assert (
        "does not fit one Tiny; the smallest devices that hold it are Small (24 GiB) and Middle (80 GiB)."
    ) in found.headline()
    assert ". Out of memory in step 0 backward, lm_head.backward: 18.0 MiB asked for" in found.headline()
    alone = replace(found, unlimited=None)
    assert alone.headline().startswith("Out of memory in step")
    assert "missing" in alone.headline()


def test_a_recording_without_categories_gets_no_sentence_about_them() -> None:
    write = Writer()
    write.alloc(3 * MIB)
    assert timeline(write.tape()).headline().endswith("allocated).")


def test_repr_is_one_line() -> None:
    timeline = memsim.simulate(memsim.Run.load("qwen2.5-0.5b", set=["model.num_hidden_layers=2", "steps=2"]))
    assert repr(timeline) == (
        f"<Timeline qwen2.5-0.5b: {gib(timeline.peak_reserved)} peak reserved, {gib(timeline.peak_allocated)} peak "
        f"allocated, {len(timeline.tape):,} events>"
    )


def test_a_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = memsim.simulate(memsim.Run.load("qwen2.5-0.5b", set=["model.num_hidden_layers=1", "steps=2"]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    for thing in (timeline, memsim.compare([timeline, timeline])):
        with pytest.raises(ImportError, match="needs pandas, which memsim does not install: pip install pandas"):
            thing.to_frame()
