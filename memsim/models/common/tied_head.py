"""A language model whose head is a matrix without bias, which is the embedding's own where they are tied."""

from __future__ import annotations

from collections.abc import Callable

from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.losses import causal_lm_loss


@module_call
def causal_lm(
    b: Builder,
    settings: Settings,
    model: Callable[[], Tensor],
    labels: Tensor,
    embedding: str,
    table: tuple[int, int],
    tied: bool,
) -> Tensor:
    """Runs ForCausalLM.forward with labels. Returns the loss. `model` is the body's call, which gives last_hidden_state
    [B, S, W]; `table` is [V, W].
    """
    hidden_states = model()
    weight = b.parameter(embedding if tied else "lm_head.weight", table, settings.dtype, True)
    logits = b.op("linear", hidden_states, weight, label="lm_head", module="lm_head")
    loss = causal_lm_loss(b, settings, logits, labels)
    return loss


def head_parameters(table: tuple[int, int], dtype: str, tied: bool) -> tuple[Parameter, ...]:
    """Returns the parameters that the head adds to the embedding's."""
    return () if tied else (Parameter("lm_head.weight", table, dtype, module="linear"),)


release_in_slot_order(__name__)
