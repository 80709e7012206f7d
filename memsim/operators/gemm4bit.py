"""When bitsandbytes 0.50 multiplies by 4-bit weights in a fused kernel, and when it dequantizes them and calls
F.linear.

The thresholds are those of its backends/cuda/ops.py, _gemm_4bit_use_custom_cuda (MIT licence). m is rows of x, n output
features, k input features; a wave is as many blocks of 64 output features as the device has multiprocessors.
"""

from __future__ import annotations

FLOOR, MOST, LARGE = 4, 1536, 512  # rows: always fused; never above; never above for weights of 4 Mi elements and more
SMALL_WEIGHT = 4 << 20  # elements


def is_fused(sm: int, processors: int, dtype: str, m: int, n: int, k: int, block: int) -> bool:
    """Whether the fused kernel is taken on a device of compute capability sm / 10 with so many multiprocessors."""
    if m > MOST or k % block:
        return False
    if m <= FLOOR:
        return True
    if dtype == "fp32" or sm < 75 or (sm == 75 and dtype != "fp16"):
        return m < 8
    if sm == 87 or sm // 10 == 11:
        return False
    blocks = (n + 63) // 64
    if sm // 10 == 10:
        return m <= _blackwell(blocks, processors, n, k)
    if n * k < SMALL_WEIGHT:
        return m <= _small_weight(sm, blocks, processors, m, n, k)
    if m > LARGE:
        return False
    if m < 8:
        return _few_rows(sm, blocks, processors, m, n, k)
    ladder = {75: _turing, 80: _a100, 86: _ga102}.get(
        sm, _hopper if sm // 10 == 9 else _blackwell_consumer if sm == 120 else _ada
    )
    if sm == 121 and blocks >= processors:
        return m <= 256
    return m <= ladder(blocks, processors, n, k)


def _blackwell(blocks: int, processors: int, n: int, k: int) -> int:
    if blocks >= processors * 3:
        return 32
    return 8 if blocks >= processors and k < n else 0


def _small_weight(sm: int, blocks: int, processors: int, m: int, n: int, k: int) -> int:
    """The most rows for which the fused kernel wins with a small weight."""
    hbm = sm == 80 or sm // 10 == 9
    if k * 2 < n:
        if hbm:
            low = blocks * 3 < processors
            return (1536 if low else 512) if sm == 80 else (512 if low else 320)
        if sm == 75:
            return 320 if blocks >= processors * 3 or k < 704 else 64 if k >= 1024 else 96
        return 320 if blocks >= processors or blocks * k <= processors * 320 else 192
    quarter = blocks * 4 <= processors
    if sm == 80 and quarter:
        return 384 if k < n else 32 if blocks * 8 <= processors else 128
    if sm == 75 and blocks < processors and m > 8:
        return 64
    if quarter:
        return 32 if k < n or hbm else 23
    return 16 if blocks * 2 <= processors else 0


def _few_rows(sm: int, blocks: int, processors: int, m: int, n: int, k: int) -> bool:
    """5 to 7 rows: fused, but for some shapes on devices with high-bandwidth memory."""
    if sm != 80 and sm // 10 != 9:
        return True
    if m < 6 or blocks < (36 if sm // 10 == 9 else 48):
        return True
    under_75, under_60 = blocks * 4 < processors * 3, blocks * 5 < processors * 3
    if k > n:
        return not under_75
    if k == n:
        return not under_60 if sm == 80 else not (under_75 and not under_60)
    return True


def _turing(blocks: int, processors: int, n: int, k: int) -> int:
    if blocks >= processors * 3:
        return 128 if k < n else 64
    return 64 if blocks >= processors // 2 else 32


def _a100(blocks: int, processors: int, n: int, k: int) -> int:
    if blocks >= processors * 3:
        return 128
    if blocks >= processors:
        return 64 if k < n else 32
    if (k >= n * 3 and blocks * 4 > processors) or (k == n and blocks >= 48 and blocks * 5 < processors * 3):
        return 0
    if blocks * 2 < processors:
        if k <= n:
            return 128
        if blocks * 3 >= processors:
            return 0
    return 128 if blocks >= processors // 2 and k < n else 16


def _ga102(blocks: int, processors: int, n: int, k: int) -> int:
    if blocks >= processors:
        return 128
    return 64 if blocks >= processors // 2 else 16


def _hopper(blocks: int, processors: int, n: int, k: int) -> int:
    for waves, most in ((3, 64), (2, 48), (1, 32)):
        if blocks >= processors * waves:
            return most
    if blocks >= processors // 2:
        return 0 if k >= n and blocks * 4 < processors * 3 else 16
    return 0


def _blackwell_consumer(blocks: int, processors: int, n: int, k: int) -> int:
    for waves, most in ((3, 256), (2, 128)):
        if blocks >= processors * waves:
            return most
    if blocks * 5 >= processors * 4:
        return 96 if k >= n else 64
    if blocks >= processors // 2:
        return 64 if k * 2 >= n and blocks >= 128 else 8
    return 16 if k > n * 2 and blocks > 64 else 8


def _ada(blocks: int, processors: int, n: int, k: int) -> int:
    """Also what no other ladder is for."""
    tall = k > n * 2
    for waves, most in ((3, 256), (2, 128)):
        if blocks >= processors * waves:
            return most
    if blocks * 5 >= processors * 4:
        if tall or blocks >= 200:
            return 128
        return (128 if processors >= 60 else 32) if k >= n else 64
    if blocks >= processors // 2:
        return 64 if tall else 8 if blocks >= 64 else 32
    if k > n and blocks <= 48:
        return 12 if k >= n * 3 else 10
    return 16 if tall or blocks < 48 else 8
