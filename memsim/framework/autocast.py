"""What torch.autocast does to an operator's arguments (aten/src/ATen/autocast_mode.h and autocast_mode.cpp)."""

from __future__ import annotations

LOWER = frozenset(  # AT_FORALL_LOWER_PRECISION_FP
    {"linear", "matmul", "addmm", "conv2d", "mm", "baddbmm", "flash_attention", "efficient_attention", "math_attention"}
)
# AT_FORALL_FP32 and FP32_SET_OPT_DTYPE
FP32 = frozenset({"square", "pow", "rsqrt", "log_softmax", "softmax", "nll_loss", "layer_norm", "norm", "exp"})
SETS_DTYPE = frozenset({"sum"})  # FP32_SET_OPT_DTYPE where the kernel reads the lower precision and writes fp32
# order in which the arguments are cast, for operators whose arguments come in another order than the function's
ORDER: dict[str, tuple[int, ...]] = {"addmm": (1, 0, 2)}
FLOATING = frozenset({"fp32", "bf16", "fp16"})


def target(kind: str, dtype: str) -> str | None:
    """Returns the dtype to which an operator's floating-point arguments are cast under autocast to `dtype`. None where
    they stay as they are.
    """
    return dtype if kind in LOWER else "fp32" if kind in FP32 else None
