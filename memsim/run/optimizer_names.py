"""The optimizers that a Run may name, and the other names that people have for them."""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import nearest, show
from memsim.stacks.software import Software

# Name → the optimizer, which has one parameter group, and defaults except where said.
OPTIMIZERS: Mapping[str, str] = {
    "adamw": "torch.optim.AdamW (foreach)",
    "adamw-fused": "torch.optim.AdamW, fused=True",
    "adamw-for-loop": "torch.optim.AdamW, foreach=False",
    "sgd": "torch.optim.SGD",
    "sgd-momentum": "torch.optim.SGD, momentum=0.9",
    "adafactor": "torch.optim.Adafactor",
    "adagrad": "torch.optim.Adagrad",
    "rmsprop": "torch.optim.RMSprop",
    "nadam": "torch.optim.NAdam",
    "adamw-8bit": "bitsandbytes AdamW8bit",
    "paged-adamw-8bit": "bitsandbytes PagedAdamW8bit",
    "paged-adamw": "bitsandbytes PagedAdamW32bit",
    "lion-8bit": "bitsandbytes Lion8bit",
    "muon": "torch.optim.Muon for matrices of the layers and LoRA's; torch.optim.AdamW for embeddings, head, norms, "
    "biases",
    "adam": "torch.optim.Adam (foreach)",
    "adam-fused": "torch.optim.Adam, fused=True",
    "adamw-amsgrad": "torch.optim.AdamW, amsgrad=True (foreach)",
    "adamax": "torch.optim.Adamax",
    "radam": "torch.optim.RAdam",
    "adadelta": "torch.optim.Adadelta",
    "adamw-32bit": "bitsandbytes AdamW32bit",
    "adam-8bit": "bitsandbytes Adam8bit",
    "paged-adam-8bit": "bitsandbytes PagedAdam8bit",
    "paged-adam": "bitsandbytes PagedAdam32bit",
    "lion": "bitsandbytes Lion32bit",
    "paged-lion": "bitsandbytes PagedLion32bit",
    "paged-lion-8bit": "bitsandbytes PagedLion8bit",
    "ademamix": "bitsandbytes AdEMAMix",
    "ademamix-8bit": "bitsandbytes AdEMAMix8bit",
    "paged-ademamix": "bitsandbytes PagedAdEMAMix",
    "paged-ademamix-8bit": "bitsandbytes PagedAdEMAMix8bit",
    "sgd-8bit": "bitsandbytes SGD8bit, momentum=0.9",
    "rmsprop-8bit": "bitsandbytes RMSprop8bit",
    "rmsprop-32bit": "bitsandbytes RMSprop32bit",
    "adagrad-8bit": "bitsandbytes Adagrad8bit",
}

# the optimizer behind a name of Hugging Face's TrainingArguments.optim (transformers/training_args.py, OptimizerNames)
ALIASES: Mapping[str, str] = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "paged_adamw_32bit": "paged-adamw",
    "lion_8bit": "lion-8bit",
    "lion_32bit": "lion",
    "paged_lion_8bit": "paged-lion-8bit",
    "paged_lion_32bit": "paged-lion",
    "ademamix_8bit": "ademamix-8bit",
    "paged_ademamix_8bit": "paged-ademamix-8bit",
    "paged_ademamix_32bit": "paged-ademamix",
    "rmsprop_bnb": "rmsprop-32bit",
    "rmsprop_bnb_8bit": "rmsprop-8bit",
    "rmsprop_bnb_32bit": "rmsprop-32bit",
}


def optimizer_name(value: object) -> str:
    """Returns a Run's name for an optimizer. Raises ValueError with the nearest names."""
    if isinstance(value, str):
        value = ALIASES.get(value, value)
        if value in OPTIMIZERS:
            return value
    raise ValueError(
        f"{show(value)} is not one of {', '.join(OPTIMIZERS)}{nearest(str(value), [*OPTIMIZERS, *ALIASES])}"
    )


def held_by(stack: Software) -> dict[str, tuple[str, ...]]:
    """Maps a key of a Run to its values that are held against recordings of the stack. Of keys not in it, all values
    are.
    """
    if not stack.no_optimizers:
        return dict(stack.held)
    return {**stack.held, "optimizer": tuple(name for name in OPTIMIZERS if name not in stack.no_optimizers)}
