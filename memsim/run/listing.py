"""Every key of a Run with what it may be, its default and what it is, from the models that check it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator

from memsim.run import values, yamlfile
from memsim.run.checkpointing import FORMS, read_strategy
from memsim.run.job import Run
from memsim.run.optimizer_names import OPTIMIZERS, optimizer_name

# what a validator lets through
VALID: dict[Callable[..., object], str] = {
    values.flag: "true or false",
    values.targets: "all-linear, a list of module names, or a pattern for whole names",
    values.modules: "a list of names",
    values.layers: "a list of numbers of layers",
    values.patterns: "a list of patterns of names",
    values.memory: "a size such as 24GiB, or a number of GiB",
    values.device: "a name (memsim devices)",
    values.stack: "a name (memsim stacks)",
    values.routing: f"{', '.join(values.ROUTINGS)}, or {{imbalance: 2.0}}",
    values.text: "text, as PYTORCH_ALLOC_CONF takes it",
    values.model: "a name (memsim models, or of the Hugging Face hub), the path of a config.json, or its fields",
    read_strategy: FORMS,
    optimizer_name: ", ".join(OPTIMIZERS),
}
ABOUT = {
    "model": "the model; model.KEY is a field of its Hugging Face config",
    "method.kind": "which weights train: all of them, adapters, or adapters on quantized weights",
    "method.rank": "rank of the adapters (LoRA's r)",
    "method.targets": "modules that get adapters; null: PEFT's own for (IA)³",
    "method.dropout": "probability of dropout in the adapters",
    "method.quantization": "how frozen weights are stored, with kind qlora and qia3",
    "method.group_size": "input features that share a scale, with gptq and awq",
    "method.double_quant": "whether the scales of nf4 are quantized too",
    "method.dora": "whether the adapters are DoRA's",
    "method.rslora": "whether the adapters are scaled by the root of the rank, which changes no memory",
    "method.bias": "which of the model's biases train beside the adapters",
    "method.layers": "layers that get adapters; null: all",
    "method.target_parameters": "ends of names of parameters with adapters of their own, such as experts",
    "method.modules_to_save": "ends of names of modules that train as a whole beside the adapters",
    "method.feedforward": "(IA)³: targets whose input is scaled instead of their output; null: PEFT's own",
    "method.casts": "who casts what is not quantized: PEFT's preparation, TRL's trainer, nobody",
    "batch.size": "sequences (or images) in a micro-batch",
    "batch.sequence": "tokens in a sequence",
    "batch.accumulation": "micro-batches in a step",
    "batch.padding": "share of the tokens that is padding; with any there is an attention mask",
    "batch.target": "tokens that the decoder gets, of an encoder with a decoder; null: as many as batch.sequence",
    "train.only": "patterns of the parameters that train, with method.kind full; none: all",
    "train.freeze": "patterns of the parameters that do not train",
    "precision": "dtype of weights and products; amp- keeps weights in fp32 under autocast",
    "attention": "implementation of attention (attn_implementation)",
    "checkpointing": "what is recomputed in backward; budget finds the cheapest that fits",
    "routing": "how tokens go to experts, where there are any",
    "optimizer": "the optimizer",
    "optimizer_in_backward": "whether each parameter is stepped as soon as its gradient is there",
    "grad_scaler": "whether torch.amp.GradScaler is used, with amp-fp16",
    "clip_grad_norm": "largest norm of the gradients; null: they are not clipped",
    "fsdp": "GPUs over which FSDP shards; more than 1 is not simulated yet",
    "allocator": "settings of PyTorch's allocator, such as expandable_segments:True",
    "addresses": "addresses that the driver hands out; they decide ties up to torch 2.12",
    "device": "a device of the catalogue, which sets device_memory_gib and sm where they are not given",
    "device_memory_gib": "memory of the device",
    "sm": "compute capability times ten",
    "steps": "training steps to simulate",
    "efficiency.matmul": "estimates of time: share of the data sheet's rate of matrix products",
    "efficiency.attention": "share of that rate within attention",
    "efficiency.memory": "share of the memory's bandwidth",
    "efficiency.pcie": "share of the bandwidth to the host",
    "efficiency.launch_us": "microseconds that a launch takes",
    "stack": "versions of PyTorch, transformers and PEFT",
}


@dataclass(frozen=True)
class Key:
    """A key of a Run."""

    key: str  # dotted, as --set takes it
    values: str  # that are valid, in words
    default: object  # as plain data; None too where the key is required
    required: bool
    description: str

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)

    @property
    def shown(self) -> str:
        """The default as YAML writes it."""
        return "required" if self.required else yamlfile.inline(self.default) or "''"


def keys_of_run() -> list[Key]:
    """Every key in the order of the Run's file."""
    return list(_keys(Run, ""))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        key, default = f"{prefix}{name}", None if field.is_required() else field.default
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{key}.")
            continue
        valid = _valid(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        plain = list(default) if isinstance(default, tuple) else default
        yield Key(key, valid, plain, field.is_required(), ABOUT[key])


def _valid(annotation: Any) -> str:
    """What an annotation lets through, in words."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for entry in metadata:
            if isinstance(entry, BeforeValidator):
                func: Any = entry.func
                words = VALID.get(func) or values.WORDS[func]
                optional = NoneType in get_args(inner) and "null" not in words
                return f"{words} or null" if optional else words
        return _valid(inner)
    if get_origin(annotation) is Literal:
        return ", ".join(str(option) for option in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        parts = [_valid(part) for part in get_args(annotation) if part is not NoneType]
        null = NoneType in get_args(annotation) and not any("null" in part for part in parts)
        return " or ".join([*parts, *(["null"] if null else [])])
    return str(getattr(annotation, "__name__", annotation))
