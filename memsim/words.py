"""Numbers and phases as people read them."""

from __future__ import annotations

from memsim.tape import Category

GIB = 2**30
MIB = 2**20
KIB = 2**10

CATEGORY_NAMES = {
    Category.WEIGHTS: "weights",
    Category.ADAPTERS: "adapters",
    Category.GRADIENTS: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
    Category.ACTIVATIONS: "activations",
    Category.RECOMPUTATION: "recomputation",
    Category.LOGITS_AND_LOSS: "logits and loss",
    Category.SCRATCH: "scratch",
    Category.INPUTS: "inputs",
    Category.UNATTRIBUTED: "unattributed",
}
UNSPLIT = "unsplit remainder"  # what blocks hold beyond the bytes requested of them


def gib(count: int, unit: bool = True) -> str:
    """Bytes in GiB with about four digits: 139.5, 12.35, 0.412."""
    value = count / GIB
    digits = 1 if abs(value) >= 99.95 else 2 if abs(value) >= 0.995 else 3
    return f"{value:.{digits}f} GiB" if unit else f"{value:.{digits}f}"


def capacity(count: int) -> str:
    """A device's bytes: "80 GiB", "5.90 GiB"."""
    return f"{count // GIB} GiB" if count % GIB == 0 else gib(count)


def size(count: int) -> str:
    """Bytes in the unit that fits: 139.5 GiB, 594.0 MiB, 1.5 KiB, 512 bytes."""
    if abs(count) >= GIB:
        return gib(count)
    if abs(count) >= MIB:
        return f"{count / MIB:.1f} MiB"
    if abs(count) >= KIB:
        return f"{count / KIB:.1f} KiB"
    return f"{count} byte" if count == 1 else f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits: 12.3 s, 4.97 s, 312 ms, 45 µs."""
    if seconds >= 9.995:
        return f"{seconds:.1f} s"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return (
        f"{1e3 * seconds:.0f} ms"
        if seconds >= 0.00995
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 0.0009995
        else f"{1e6 * seconds:.0f} µs"
    )


def percent(ratio: float) -> str:
    """A ratio in percent: "46 %", "1.4 %"."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.1f} %"


def share(part: int, whole: int) -> str:
    """A part of a whole in percent: "97 %", "1.4 %", "<0.1 %"."""
    if whole <= 0 or part <= 0:
        return "0 %"
    percent = 100 * part / whole
    return "<0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


def phase_words(phase: str) -> str:
    """A phase's name as words: "load", "step 0 forward"."""
    step, _, kind = phase.partition("/")
    return f"step {step} {kind}" if kind else phase


def torch_size(count: int) -> str:
    """Bytes as PyTorch's allocator prints them in its messages."""
    if count <= KIB:
        return f"{count} bytes"
    if count <= MIB:
        return f"{count / KIB:.2f} KiB"
    if count <= GIB:
        return f"{count / MIB:.2f} MiB"
    return f"{count / GIB:.2f} GiB"


def version() -> str:
    """The version of memsim that is installed."""
    # costs milliseconds, and most callers never ask
    from importlib.metadata import PackageNotFoundError, version as installed

    try:
        return installed("memsim")
    except PackageNotFoundError:
        return "unknown (not installed)"
