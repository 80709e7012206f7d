"""Activation checkpointing: which layers run again in backward."""

from __future__ import annotations

from dataclasses import replace

from memsim.models.model import Model


def checkpoint_every_layer(model: Model) -> Model:
    """transformers' gradient_checkpointing_enable(use_reentrant=False): each decoder layer is one torch.utils.checkpoint region."""
    return replace(model, checkpointed=True)


def require_input_grads(model: Model) -> Model:
    """enable_input_require_grads(): the embedding's output is told to require a gradient, and keeps it."""
    return replace(model, inputs_require_grad=True)
