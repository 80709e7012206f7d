"""Memory that depends on the versions of the framework and on the device: workspaces and scratch
memory of libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsim.stacks.known import GOLDEN
from memsim.stacks.software import Software

CUBLAS_WORKSPACE = 8_519_680  # ":4096:2:16:8" before Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp)
CUBLAS_WORKSPACE_HOPPER = 32 * 2**20
CUBLASLT_WORKSPACE = 2**20


@dataclass(frozen=True)
class Platform:
    """A software stack on a device of one compute capability."""

    sm: int = 80  # compute capability times ten
    processors: int = 108
    threads_per_processor: int = 2048
    software: Software = GOLDEN

    @property
    def large_shared_memory(self) -> bool:
        """True if a block can have the shared memory of a data-centre chip (163 KiB and more)."""
        return self.sm in (80, 90, 100, 103)

    @property
    def grouped_kernel(self) -> bool:
        """True if torch has a grouped product of bf16 for the device, in one kernel (_scaled_mm_allowed_device, sm90
        and sm100).
        """
        return self.sm // 10 in (9, 10)

    def grouped_workspace(self, rows: int, columns: int) -> int:
        """Bytes of the workspace of that kernel for an expert's result of rows × columns: 128-byte tensor maps for each
        multiprocessor. On Hopper there are four, of both operands, C and D. On Blackwell the kernel of each tile size
        has more (seen in recordings, not read in the source).
        """
        maps = 4 if self.sm < 100 else 42 if min(rows, columns) <= 128 else 46
        return 128 * maps * self.processors

    @property
    def cublas_workspace(self) -> int:
        """Bytes of cuBLAS' workspace."""
        large = self.sm // 10 == 9 if self.software.large_cublas_workspace_on_hopper_only else self.sm >= 90
        return CUBLAS_WORKSPACE_HOPPER if large else CUBLAS_WORKSPACE

    @property
    def cublaslt_workspace(self) -> int:
        """Bytes of cuBLASLt's workspace."""
        return CUBLASLT_WORKSPACE

    # Tiles are threads × items of cub/device/dispatch/tuning/tuning_{scan,unique_by_key,radix_sort}.cuh for 8-byte keys
    # and values.

    def scan_bytes(self, n: int) -> int:
        """Temporary storage, in bytes, of cub::DeviceScan over n items of 8 bytes: a 16-byte descriptor for each tile
        of 128 threads × 7 items.
        """
        return self._aliased_after_head(16 * (-(-n // 896) + CUB_PADDING))

    def short_scan_bytes(self, n: int = 1) -> int:
        """Temporary storage, in bytes, of cub::DeviceScan over n items of 4 bytes: an 8-byte descriptor for each tile
        of 128 threads × 15 items.
        """
        return self._aliased_after_head(8 * (-(-n // 1920) + CUB_PADDING))

    def sum_bytes(self, n: int) -> int:
        """Temporary storage, in bytes, of cub::DeviceReduce::Sum over n items, with sums of 4 bytes. A single tile
        needs none, and asks for a byte. Otherwise there is a sum for each block, in a grid of 5 times the blocks that
        run at once. These are OCCUPANCY for each multiprocessor on the virtual GPU; a real one may run more.
        """
        if n <= CUB_REDUCE_TILE:
            return 1
        return _aliased(4 * 5 * OCCUPANCY * self.processors)

    def select_bytes(self, n: int) -> int:
        """Temporary storage, in bytes, of cub::DeviceSelect::Flagged over n items of 8 bytes. A byte for each item
        flags whether it is taken.
        """
        tile = 640 if self.sm in (86, 89) else 3520 if self.sm >= 100 else 4224 if self.sm >= 90 else 2304
        return self._aliased_after_head(8 * (-(-n // tile) + CUB_PADDING))

    def unique_bytes(self, n: int) -> int:
        """Temporary storage, in bytes, of cub::DeviceSelect::UniqueByKey over n pairs of 8-byte keys and values. On
        some stacks values have 4 bytes, and offsets too. Its tile is tuned for each architecture and for both sizes.
        """
        short = self.software.unique_in_32_bits
        if self.sm >= 90:
            tile = 640 * 7 if short else 448 * 11
        else:
            tile = (256 if short else 192) * 7 if self.sm == 80 else 64 * 5
        return self._aliased_after_head((8 if short else 16) * (-(-n // tile) + CUB_PADDING))

    def _aliased_after_head(self, descriptors: int) -> int:
        """Bytes of the temporaries of tile descriptors, with the head that the version of CUB puts before them."""
        return _aliased(0 if self.software.cub_without_head else 256, descriptors)

    def sort_bytes(self, n: int, bits: int) -> int:
        """Temporary storage, in bytes, of cub::DeviceRadixSort over n pairs of 8-byte keys and values: two buffers, a
        histogram of 256 8-byte counters for each pass over 8 bits, a 4-byte look-back for each tile of items, and the
        passes' own counters. A sort by a single thread block needs none, and asks for a byte.
        """
        if n <= CUB_SINGLE_TILE:
            return 1
        passes = -(-bits // 8)
        tile = 384 * 12 if self.sm >= 90 else 384 * 10 if self.sm >= 80 else 256 * 11
        buffer = 8 * n if passes > 1 else 0  # one pass goes straight to the output
        return _aliased(buffer, buffer, passes * 256 * 8, -(-n // tile) * 256 * 4, passes * 8)

    def embedding_sort(self, indices: int, rows: int, width: int, half: bool = True) -> EmbeddingSort | None:
        """Returns the bytes that embedding_dense_backward_cuda allocates beside the gradient. None where one kernel
        does it all, up to 3072 indices.

        Few rows that many indices share are summed by atomic additions, those of 16-bit numbers (`half`) in fp32.
        """
        if indices <= 3072:
            return None
        segments = min(indices, rows)
        partial = indices // 10 + segments
        warped = -(-width // 32) * 32
        grid = -(-segments * warped // min(warped, 1024))
        fused = grid < 4 * self.processors and partial > 4 * grid and not self.software.embedding_sums_in_two_passes
        return EmbeddingSort(
            sort=self.sort_bytes(indices, 64 if self.software.embedding_sorts_all_bits else rows.bit_length()),
            unique=self.unique_bytes(indices),
            segments=8 * segments,
            scan=self.scan_bytes(segments),
            partial=8 * partial,
            sums=(8 * partial, *([4 * rows * width] if half else [])) if fused else (4 * partial * width,),
        )


@dataclass(frozen=True)
class EmbeddingSort:
    """Bytes of the temporaries of an embedding's sorted backward (ATen/native/cuda/EmbeddingBackwardKernel.cu)."""

    sort: int
    unique: int
    segments: int
    scan: int
    partial: int
    sums: tuple[int, ...]


CUB_PADDING = 32  # number of tile descriptors ahead of the first
CUB_REDUCE_TILE = 4096  # items of 1 byte: 256 threads × 16
OCCUPANCY = 2
# pairs of 8-byte keys and values: 256 threads × 19 items of 4 bytes (SingleTilePolicy, scaled by RegBoundScaling)
CUB_SINGLE_TILE = 256 * 9


def _aliased(*sizes: int) -> int:
    """Bytes of cub::detail::AliasTemporaries: pieces aligned to 256 bytes, and room to align the whole."""
    return sum(-(-size // 256) * 256 for size in sizes) + 255


# (multiprocessors, threads on each) by compute capability: V100, T4, A100, A6000, 4090, H100, B200, B300, RTX 5090.
DEVICES = {
    70: (80, 2048),
    75: (40, 1024),
    80: (108, 2048),
    86: (84, 1536),
    89: (128, 1536),
    90: (132, 2048),
    100: (148, 2048),
    103: (148, 2048),
    120: (170, 1536),
}


def platform_for(sm: int, processors: int | None = None, software: Software = GOLDEN) -> Platform:
    """Returns a software stack on a device of compute capability sm / 10, with `processors` multiprocessors (by default
    those of the best-known such device).
    """
    known, threads = DEVICES.get(sm, DEVICES[80])
    return Platform(sm, processors or known, threads, software)
