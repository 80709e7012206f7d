"""GradScaler: what it makes, when, and where it is refused. The recordings in traces/held-out hold it to the byte."""

from __future__ import annotations

import numpy as np
import pytest

from memsim import Run, simulate
from memsim.errors import InputError
from memsim.tape import Action

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 500,
}


def requests(optimizer: str, clip: float | None, scaler: bool) -> tuple[int, int]:
    """Allocations of two steps, and bytes that are left after them."""
    batch = {"sequence": 64}
    run = Run(
        model=MODEL,
        precision="amp-fp16",
        optimizer=optimizer,
        clip_grad_norm=clip,
        grad_scaler=scaler,
        batch=batch,
        steps=2,
    )
    tape = simulate(run).tape
    sizes = tape.bytes * ((tape.action == Action.ALLOC).astype(np.int64) - (tape.action == Action.FREE))
    return int((tape.action == Action.ALLOC).sum()), int(sizes.sum())


@pytest.mark.parametrize(
    ("optimizer", "clip", "extra"),
    [
        # a step: the scaled loss, its gradient; two in fp64, the reciprocal, the check, their copies
        ("adamw", None, 2 * (2 + 6)),
        ("adamw", 1.0, 2 * (2 + 6)),
        ("adamw-fused", None, 2 * (2 + 4 + 2)),  # no reciprocal: the scale and the check are handed to the optimizer
        ("adamw-fused", 1.0, 2 * (2 + 6 + 1)),
    ],
)
def test_scalars(optimizer: str, clip: float | None, extra: int) -> None:
    without, held = requests(optimizer, clip, False)
    with_scaler, held_with = requests(optimizer, clip, True)
    assert with_scaler - without == extra + 2
    assert held_with - held == 8  # the scale and the tracker of its growth


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"precision": "fp16"},
            "grad_scaler: true with precision fp16 fails in PyTorch: Attempting to unscale FP16 gradients; precision "
            "amp-fp16",
        ),
        (
            {"precision": "bf16"},
            "grad_scaler: true with precision bf16 has no fp16 gradients to keep from underflow; precision "
            "amp-fp16 has",
        ),
        ({"precision": "amp-bf16", "method": {"kind": "lora"}}, "precision amp-fp16 has"),
    ],
)
def test_where_there_is_nothing_to_scale(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        simulate(Run(**{"model": MODEL, "grad_scaler": True, **changes}))


def test_fp16_weights_with_fp32_adapters_are_scaled() -> None:
    assert simulate(
        Run(model=MODEL, grad_scaler=True, precision="fp16", method={"kind": "lora"}, batch={"sequence": 16})
    ).steps
