"""Setting strings, read and refused as PyTorch reads and refuses them; each accepted and refused string was tried on
PyTorch 2.15.0.
"""

from __future__ import annotations

import pytest

from memsim.allocator import Settings
from memsim.allocator.rules import Reserve
from memsim.errors import InputError

MIB = 2**20


def test_defaults() -> None:
    assert Settings.parse("") == Settings() == Settings.parse("  ")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("max_split_size_mb:64", "max_split_size", 64 * MIB),
        ("max_split_size_mb:64MiB", "max_split_size", 64 * MIB),
        (" max_split_size_mb : 64 , ", "max_split_size", 64 * MIB),
        ("max_split_size_mb:64,max_split_size_mb:128", "max_split_size", 128 * MIB),
        ("max_non_split_rounding_mb:40", "max_non_split_rounding", 40 * MIB),
        ("large_segment_size_mb:32", "max_non_split_rounding", 32 * MIB),
        ("large_segment_size_mb:32", "large_segment_size", 32 * MIB),
        ("garbage_collection_threshold:0.6", "garbage_collection_threshold", 0.6),
        ("garbage_collection_threshold:.5e0x", "garbage_collection_threshold", 0.5),
        ("expandable_segments:True", "expandable_segments", True),
        ("expandable_segments_reserve:40G", "expandable_segments_reserve", Reserve(40.0, True)),
        ("expandable_segments_reserve:nonsense", "expandable_segments_reserve", None),
        ("per_process_memory_fraction:0.95", "per_process_memory_fraction", 0.95),
        ("roundup_power2_divisions:8", "roundup_power2_divisions", (8,) * 16),
        (
            "roundup_power2_divisions:[64:8,256:4,1024:4,>:1]",
            "roundup_power2_divisions",
            (8,) * 7 + (0, 4, 0, 4) + (1,) * 5,
        ),
        ("roundup_power2_divisions:[64:8,65536:2]", "roundup_power2_divisions", (8,) * 7 + (0,) * 8 + (2,)),
        ("pinned_num_register_threads:8,throw_on_cudamalloc_oom:True", "throw_on_cudamalloc_oom", True),
        ("expandable_segments_reserve_by_class:[a:0.5,b:1G],expandable_segments:True", "expandable_segments", True),
    ],
)
def test_accepted(text: str, field: str, value: object) -> None:
    assert getattr(Settings.parse(text), field) == value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("max_split_size_mb=64", "max_split_size_mb=64"),
        ("max_split_size_mb:19", "max_split_size_mb"),
        ("max_split_size_mb:x", "max_split_size_mb"),
        ("max_split_size_mb", "max_split_size_mb"),
        ("max_split_size_mb:31,large_segment_size_mb:32", "max_split_size_mb"),
        ("max_non_split_rounding_mb:10", "max_non_split_rounding_mb"),
        ("large_segment_size_mb:10", "large_segment_size_mb"),
        ("garbage_collection_threshold:1", "garbage_collection_threshold"),
        ("garbage_collection_threshold:nan", "garbage_collection_threshold"),
        ("per_process_memory_fraction:1.5", "per_process_memory_fraction"),
        ("expandable_segments:true", "expandable_segments"),
        ("roundup_power2_divisions:0", "roundup_power2_divisions"),
        ("roundup_power2_divisions:3", "roundup_power2_divisions"),
        ("roundup_power2_divisions:[3:4]", "roundup_power2_divisions"),
        ("roundup_power2_divisions:[64:8", "roundup_power2_divisions"),
        ("expandable_segments_reserve:[19", "expandable_segments_reserve"),
        ("pinned_num_register_threads:256", "pinned_num_register_threads"),
        ("foo:1", "foo"),
        ("backend:cudaMallocAsync", "backend"),
    ],
)
def test_refused(text: str, key: str) -> None:
    with pytest.raises(InputError, match=r"^allocator: ") as caught:
        Settings.parse(text)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_differ() -> None:
    assert (
        Settings.parse("roundup_power2_divisions:[64:8,256:4,1024:4,>:1]", "2.9.1").roundup_power2_divisions
        == (8,) * 7 + (0, 4, 0) + (1,) * 6
    )
    assert Settings.parse("max_split_size_mb:20", "2.10.0").max_split_size == 20 * MIB
    for text, torch in [
        ("max_split_size_mb:20", "2.9.1"),
        ("max_non_split_rounding_mb:40", "2.5.1"),
        ("large_segment_size_mb:32", "2.10.0"),
        ("throw_on_cudamalloc_oom:True", "2.11.0"),
        ("per_process_memory_fraction:0.5", "2.9.1"),
        ("", "1.13.0"),
        ("", "newest"),
    ]:
        with pytest.raises(InputError):
            Settings.parse(text, torch)


def test_limits_are_rounded_as_the_version_does() -> None:
    device = 1001
    assert Settings(per_process_memory_fraction=0.5).limit(device) == 501
    assert Settings(per_process_memory_fraction=0.5, torch="2.12.1").limit(device) == 500
    assert Settings(per_process_memory_fraction=1.0).limit(device) is None
    assert Settings(per_process_memory_fraction=1.0, torch="2.9.1").limit(device) == device
    assert Settings(torch="2.9.1").limit(device) is None
