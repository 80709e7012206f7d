"""PyTorch's setting string (PYTORCH_ALLOC_CONF, PYTORCH_CUDA_ALLOC_CONF), parsed and refused as PyTorch does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memsim.allocator.rules import GOLDEN, Reserve, Rules, rules_of
from memsim.units import MIB

if TYPE_CHECKING:
    from memsim.allocator.compiled.arena import ARRAY

UNIT = 512  # bytes


@dataclass(frozen=True)
class Settings:
    """The allocator's settings, and the PyTorch version whose rules it follows. The defaults are PyTorch's."""

    max_split_size: int | None = None  # bytes; blocks of this size and more are not split; None: all may be split
    max_non_split_rounding: int = 20 * MIB  # bytes by which a block of that size may exceed a request for it
    # Number of steps to a power of two, for sizes from 1, 2, 4 … MiB on. 0: multiples of 512 bytes.
    roundup_power2_divisions: tuple[int, ...] = (0,) * 16
    garbage_collection_threshold: float = 0.0  # share of the memory limit; 0: no garbage collection
    expandable_segments: bool = False
    expandable_segments_reserve: Reserve | None = None  # None: 9/8 of the device
    large_segment_size: int = 20 * MIB  # bytes of a segment for requests above 1 MiB and below 10 MiB
    per_process_memory_fraction: float | None = None  # share of the device; None: never set
    throw_on_cudamalloc_oom: bool = False
    torch: str = GOLDEN

    @classmethod
    def parse(cls, text: str, torch: str = GOLDEN) -> Settings:
        """Reads a setting string. Raises InputError where PyTorch would refuse it, and for backend:cudaMallocAsync,
        which is not modelled.
        """
        from memsim.allocator.parse import parsed  # not needed by most runs, which set nothing

        rules = rules_of(torch)
        return cls(**parsed(text, torch, rules), torch=torch) if text.strip() else cls(torch=torch)

    @property
    def rules(self) -> Rules:
        """The rules of the PyTorch version. Raises InputError."""
        return rules_of(self.torch)

    @property
    def plain(self) -> Settings:
        """These settings without those that change the sizes of blocks or collect garbage. Under them the first state
        of a recording is rebuilt.
        """
        default = Settings()
        return replace(
            self,
            max_split_size=default.max_split_size,
            roundup_power2_divisions=default.roundup_power2_divisions,
            garbage_collection_threshold=default.garbage_collection_threshold,
            per_process_memory_fraction=default.per_process_memory_fraction,
            throw_on_cudamalloc_oom=default.throw_on_cudamalloc_oom,
        )

    def rounded(self, asked: int) -> int:
        """Bytes of the block that a request of `asked` bytes looks for."""
        divisions = self.roundup_power2_divisions[min(max(asked.bit_length() - 21, 0), 15)]
        if divisions > 1 and asked > UNIT * divisions:
            power = 1 << (asked.bit_length() - 1)
            step = power >> (divisions.bit_length() - 1)
            return power if asked == power else (asked + step - 1) & -step
        return max(UNIT, (asked + UNIT - 1) & -UNIT)

    def limit(self, device_memory: int) -> int | None:
        """Bytes that may be reserved on a device with `device_memory` bytes; None without a limit."""
        fraction, rules = self.per_process_memory_fraction, self.rules
        if fraction is None or (fraction >= 1 and rules.whole_device_unlimited):
            return None
        return math.floor(fraction * float(device_memory) + (0.5 if rules.round_limit else 0.0))

    def reservation(self, device_memory: int) -> int:
        """Bytes of address space that an expandable segment reserves, before rounding up to its pages."""
        full, reserve = device_memory + device_memory // 8, self.expandable_segments_reserve
        if reserve is None or "expandable_segments_reserve" not in self.rules.keys:
            return full
        return int(min(reserve.value * (float(1 << 30) if reserve.in_gib else float(device_memory)), float(full)))

    def write(self, heap: ARRAY, device_memory: int) -> None:
        """Sets the arena's words for these settings on a device with `device_memory` bytes."""
        from memsim.allocator.compiled import arena

        limit = self.limit(device_memory)
        collects = limit is not None and self.garbage_collection_threshold > 0
        heap[arena.CAPACITY] = device_memory
        heap[arena.LIMIT] = arena.NEVER if limit is None else limit
        heap[arena.MAX_SPLIT] = (
            arena.NEVER if self.max_split_size is None or self.max_split_size >= 1 << 58 else self.max_split_size
        )
        heap[arena.NON_SPLIT] = min(self.max_non_split_rounding, 1 << 58)
        heap[arena.GC_TARGET] = int(self.garbage_collection_threshold * float(limit or 0)) if collects else -1
        heap[arena.EXPANDABLE] = self.expandable_segments
        heap[arena.LARGE_SEGMENT] = min(self.large_segment_size, 1 << 58)
        heap[arena.RESERVATION] = self.reservation(device_memory)
        fraction = 1.0 if self.per_process_memory_fraction is None else self.per_process_memory_fraction
        heap[arena.REJECT] = int(fraction * float(device_memory)) if self.throw_on_cudamalloc_oom else arena.NEVER
        heap[arena.KEEPS_SHORT] = self.rules.keeps_short_reservations
        heap[arena.TIE_RULE] = ("address", "creation", "segment").index(self.rules.ties)
        heap[arena.ROUNDING : arena.ROUNDING + 16] = [
            min(divisions, 1 << 50) for divisions in self.roundup_power2_divisions
        ]
