"""The test vectors of the allocator's specification (PyTorch 2.15.0), by hand."""

from __future__ import annotations

from oplists import BASE, MIB, Script, calls


def test_sizes_choose_pools_and_segments() -> None:
    script = Script()
    for size in (1, 512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 32 * MIB, 32 * MIB + 1):
        script.alloc(size)
    answer = script.answer()
    a, b, c, d, e = 0, 2 * MIB, 22 * MIB, 32 * MIB, 64 * MIB
    assert [x - BASE for x in answer.address.tolist()] == [a, a + 0x200, a + 0x400, a + 0x800, b, b + 0x100200, c, d, e]
    assert [size // MIB for _, _, size in calls(answer)] == [2, 20, 10, 32, 34]


def test_power_of_two_divisions() -> None:
    script = Script()
    for size in (1200, 2048, 2049, 3000):
        script.alloc(size)
    assert [x - BASE for x in script.answer("roundup_power2_divisions:4").address.tolist()] == [0, 0x600, 0xE00, 0x1800]
    script = Script()
    for size in (1_100_000, 5_000_000, 9_000_000):
        script.alloc(size)
    answer = script.answer("roundup_power2_divisions:4")
    assert [x - BASE for x in answer.address.tolist()] == [0, 0x140000, 0x640000]
    assert answer.block.tolist() == [1_310_720, 5 * MIB, 10 * MIB]


def test_the_cache_is_flushed_before_giving_up() -> None:
    script = Script()
    script.free(script.alloc(40 * MIB), script.alloc(40 * MIB))
    script.alloc(60 * MIB)
    answer = script.answer(device_memory=128 * MIB)
    assert [(action, size // MIB) for action, _, size in calls(answer)[2:]] == [
        ("SEGMENT_FREE", 40),
        ("SEGMENT_FREE", 40),
        ("SEGMENT_ALLOC", 60),
    ]
    assert (answer.retries[-1], answer.ooms[-1]) == (1, 0)


def test_a_block_used_on_a_foreign_stream_waits() -> None:
    script = Script()
    used = script.alloc(5 * MIB)
    script.use(used, 1)
    script.free(used)
    script.alloc(5 * MIB)
    answer = script.answer()
    assert answer.allocated.tolist()[2] == 0
    assert answer.active.tolist()[2] == 5 * MIB
    assert answer.address[3] == answer.address[0], "the event had completed by the next allocation"


def test_oversize_blocks_are_not_taken_for_much_smaller_requests() -> None:
    script = Script()
    first, second = script.alloc(40 * MIB), script.alloc(60 * MIB)
    script.free(first, second)
    third = script.alloc(33 * MIB)
    script.free(third)
    script.alloc(20 * MIB)
    answer = script.answer("max_split_size_mb:32")
    assert answer.address[4] == answer.address[0] and answer.block[4] == 40 * MIB
    assert answer.address[6] - BASE == 100 * MIB


def test_oversize_blocks_are_released_first() -> None:
    script = Script()
    script.free(script.alloc(40 * MIB), script.alloc(50 * MIB), script.alloc(60 * MIB))
    script.alloc(90 * MIB)
    answer = script.answer("max_split_size_mb:32", 160 * MIB)
    assert [(action, size // MIB) for action, _, size in calls(answer)[3:]] == [
        ("SEGMENT_FREE", 60),
        ("SEGMENT_FREE", 50),
        ("SEGMENT_ALLOC", 90),
    ]
    assert answer.retries[-1] == 0


def test_garbage_collection_frees_the_older() -> None:
    script = Script()
    a, b, _ = script.alloc(80 * MIB), script.alloc(90 * MIB), script.alloc(100 * MIB)
    script.free(a, b)
    script.free(script.alloc(80 * MIB))
    script.alloc(110 * MIB)
    answer = script.answer("garbage_collection_threshold:0.5,per_process_memory_fraction:0.8", 512 * MIB)
    assert [(action, size // MIB) for action, _, size in calls(answer)[3:]] == [
        ("SEGMENT_FREE", 90),
        ("SEGMENT_ALLOC", 110),
    ]


def test_expandable_segments_map_unmap_and_fill_gaps() -> None:
    script = Script()
    thirty = script.alloc(30 * MIB)
    script.alloc(5 * MIB)
    fifty = script.alloc(50 * MIB)
    script.free(thirty, fifty)
    script.empty()
    script.alloc(60 * MIB)
    answer = script.answer("expandable_segments:True")
    assert [(action, address // MIB, size // MIB) for action, address, size in calls(answer)] == [
        ("SEGMENT_MAP", 0, 40),
        ("SEGMENT_MAP", 40, 60),
        ("SEGMENT_UNMAP", 0, 20),
        ("SEGMENT_UNMAP", 40, 60),
        ("SEGMENT_MAP", 40, 60),
    ]
    assert [(x - BASE) // MIB for x in answer.address.tolist()] == [0, 30, 35, 0, 35, -(BASE // MIB), 35]
    assert answer.segments[-1] == 0


def test_expandable_pools_have_their_own_reservations() -> None:
    script = Script()
    for size in (MIB + 1, 10 * MIB, 10 * MIB, 512):
        script.alloc(size)
    answer = script.answer("expandable_segments:True")
    assert [x - BASE for x in answer.address.tolist()[:3]] == [0, 0x100200, 0xB00200]
    assert [size // MIB for _, _, size in calls(answer)] == [20, 20, 2]
    assert answer.address[3] - BASE == 90 * 1024 * MIB, "behind a reservation of 9/8 of the device"


def test_a_request_of_nothing_gets_nothing() -> None:
    script = Script()
    script.free(script.alloc(0))
    answer = script.answer()
    assert answer.address.tolist() == [0, 0]
    assert answer.reserved[-1] == 0
