"""What depends on the versions of the framework and on the device: workspaces and the scratch memory of libraries."""

from __future__ import annotations

from dataclasses import dataclass

CUBLAS_WORKSPACE = 8_519_680  # ":4096:2:16:8" before Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp)
CUBLAS_WORKSPACE_HOPPER = 32 * 2**20
CUBLASLT_WORKSPACE = 2**20


@dataclass(frozen=True)
class Stack:
    """The golden stack on a device of one compute capability."""

    sm: int = 80  # compute capability times ten
    processors: int = 108
    threads_per_processor: int = 2048

    @property
    def cublas_workspace(self) -> int:
        """Bytes."""
        return CUBLAS_WORKSPACE_HOPPER if self.sm >= 90 else CUBLAS_WORKSPACE

    @property
    def cublaslt_workspace(self) -> int:
        """Bytes."""
        return CUBLASLT_WORKSPACE

    def scan_bytes(self, n: int) -> int:
        """Temporary storage of cub::DeviceScan over n items of 8 bytes."""
        return 1279

    def embedding_sort(self, indices: int) -> tuple[tuple[int, ...], ...]:
        """Groups of temporaries of an embedding's backward."""
        return ()


def stack_for(sm: int) -> Stack:
    """The golden stack on a device of compute capability sm / 10."""
    return Stack(sm=sm, **DEVICES.get(sm, {}))


DEVICES: dict[int, dict[str, int]] = {80: {"processors": 108, "threads_per_processor": 2048}}
