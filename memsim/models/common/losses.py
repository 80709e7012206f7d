"""The loss of a causal language model (transformers/loss/loss_utils.py)."""

from __future__ import annotations

from memsim.framework import functional as F
from memsim.framework.builder import Builder
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor


def causal_lm_loss(b: Builder, settings: Settings, logits: Tensor, labels: Tensor) -> Tensor:
    """Runs loss_utils.ForCausalLMLoss: fp32 logits, labels shifted by padding."""
    batch, sequence, vocabulary = logits.shape
    logits = F.to(b, logits, "fp32")
    if settings.stack.loss_slices_logits:
        shift_logits, shift_labels = shifted(b, settings, logits, labels)
        shift_logits = b.op("view", shift_logits, shape=(batch * (sequence - 1), vocabulary))
        shift_labels = b.op("view", shift_labels, shape=(batch * (sequence - 1),))
        return cross_entropy(b, shift_logits, shift_labels)
    labels = F.create(b, "pad", (batch, sequence + 1), "int64")
    shift_labels = F.contiguous(b, b.op("slice", labels, length=sequence))
    logits = F.reshape(b, logits, batch * sequence, vocabulary)
    shift_labels = F.reshape(b, shift_labels, batch * sequence)
    return cross_entropy(b, logits, shift_labels)


def shifted(b: Builder, settings: Settings, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Runs logits[..., :-1, :].contiguous() and labels[..., 1:].contiguous()."""
    length = logits.shape[1] - 1
    shift_logits = F.contiguous(b, F.index(b, settings, b.op("slice", logits, dim=1, length=length), 2))
    shift_labels = F.contiguous(b, b.op("slice", labels, length=length))
    return shift_logits, shift_labels


def cross_entropy(b: Builder, source: Tensor, target: Tensor) -> Tensor:
    """Runs F.cross_entropy. Its softmax stays in the dtype of the logits, under autocast too
    (at::native::cross_entropy_loss gives it the dtype).
    """
    return b.op("nll_loss", b.op("log_softmax", source, dtype=source.dtype), target)


release_in_slot_order(__name__)
