"""What a Run takes where it does not say: the attention that its model has, and a stack that runs on its device."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from memsim.errors import Unsupported, show
from memsim.stacks.known import STACKS

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
# model_types for which transformers has no sdpa (_supports_sdpa), and takes eager
EAGER = ("bloom", "gemma2", "gpt_oss")


def unsaid(config: Mapping[str, object], sm: int, said: Collection[str]) -> dict[str, str]:
    """Keys of a Run that it did not say and that are not the usual ones, by its model's config and its device's compute
    capability times ten. Raises Unsupported where the config asks for an attention that is not modelled.
    """
    found = {}
    if "attention" not in said:
        asked = config.get("attn_implementation", config.get("_attn_implementation"))
        if asked is not None and asked not in ATTENTIONS:
            raise Unsupported(
                f"model.attn_implementation: {show(asked)} is not supported yet; {', '.join(ATTENTIONS)} are"
            )
        if asked or config.get("model_type") in EAGER:
            found["attention"] = str(asked or "eager")
    usual, *others = STACKS.values()
    if "stack" not in said and not usual.runs_on(sm):
        found |= next(({"stack": stack.name} for stack in others if stack.runs_on(sm)), {})
    return found
