"""The kernels of the memory-efficient attention's backward, and the workspace that each asks for.

PyTorch takes the first of its list that can (ATen/native/transformers/cuda/mem_eff_attention/kernels/cutlassB.h;
attention_backward.cu, launchKernel).
"""

from __future__ import annotations

from dataclasses import dataclass

ANY_WIDTH = 65536
PARALLEL = 200  # thread blocks beyond which keys are not split where dk and dv have sums in memory
SMALL_PARTS = (86, 89)  # for which alone some kernels are compiled


@dataclass(frozen=True)
class BackwardKernel:
    """A kernel by its block of queries (rows) and keys (columns), and the widest head that it takes, in elements."""

    rows: int
    columns: int
    widest: int
    large: bool = False  # needs more shared memory a block than the 99 KiB of the smaller parts (sm 86, 89, 120)
    # compute capabilities that it is compiled for, without dropout; empty: all of the list's, with dropout too
    only: tuple[int, ...] = ()

    def in_registers(self, half: bool) -> bool:
        """Whether dk and dv stay in registers until they are done (kernel_backward.h, kOutputInRF)."""
        return half and self.widest <= self.rows


HALF = (
    BackwardKernel(64, 64, 64),
    BackwardKernel(128, 64, 96, only=SMALL_PARTS),
    BackwardKernel(128, 128, 128, large=True),
    BackwardKernel(64, 64, 128),
    BackwardKernel(128, 64, ANY_WIDTH),
)
HALF_TURING = (BackwardKernel(64, 64, 64), BackwardKernel(128, 64, 128), BackwardKernel(128, 64, ANY_WIDTH))
FLOAT = (BackwardKernel(64, 64, 64), BackwardKernel(128, 64, ANY_WIDTH, large=True), BackwardKernel(64, 64, ANY_WIDTH))
FLOAT_TURING = (BackwardKernel(64, 64, ANY_WIDTH),)


def backward_kernel(d: int, half: bool, sm: int, large_shared_memory: bool, dropout: bool = False) -> BackwardKernel:
    """The kernel for heads of d elements on a device of compute capability sm / 10. Those for some devices alone know
    no dropout.
    """
    kernels = (HALF if half else FLOAT) if sm >= 80 else (HALF_TURING if half else FLOAT_TURING)
    return next(
        k
        for k in kernels
        if d <= k.widest and (large_shared_memory or not k.large) and (not k.only or (sm in k.only and not dropout))
    )


def backward_workspace(
    heads: int,
    lengths: tuple[int, int],
    dims: tuple[int, int],
    half: bool,
    sm: int,
    large_shared_memory: bool,
    dropout: bool = False,
) -> int:
    """Bytes of the workspace (kernel_backward.h, workspace_size) for B·H heads, so many queries and keys, heads of so
    many elements, and in values.

    A tile of dq in fp32 with its lock for each block of queries, and where dk and dv do not stay in registers of a
    kernel for half precision, their sums in fp32 for each part that the keys are split into.
    """
    (s, keys), (d, d_v) = lengths, dims
    kernel = backward_kernel(max(d, d_v), half, sm, large_shared_memory, dropout)
    rows, columns = kernel.rows, kernel.columns
    elements = -(-s // rows) * -(-d // columns) * (rows * columns + 4)
    if half and not kernel.in_registers(half):
        splits = 1 if heads >= 256 and keys <= 2 * columns else max(1, min(-(-keys // columns), PARALLEL // heads))
        elements += splits * columns * (-(-d // rows) + -(-d_v // rows)) * rows
    return 4 * heads * -(-elements // 4) * 4
