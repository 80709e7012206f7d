"""The Run: what a person says about a training job, validated, with an error message that names the file and the key.

Units: sequence in tokens, device_memory_gib in GiB. The keys are those of the recordings (`run` in their results).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError, model_validator

from memsim import catalog
from memsim.cost.efficiency import Efficiency
from memsim.errors import InputError, nearest, show
from memsim.run import yamlfile
from memsim.run.checkpointing import read_strategy
from memsim.run.explain import explain
from memsim.run.model_reference import Resolved, resolve
from memsim.run.optimizer_names import optimizer_name
from memsim.stacks.known import STACKS
from memsim.units import GIB, as_float, read_bytes

KEYWORDS = "keyword arguments"
PATTERN = "*+?|()[]{}^$\\"  # what tells a pattern from names
ROUTINGS = ("balanced", "worst", "zeros")  # of tokens to experts
LARGEST_BATCH = 2**28  # tokens; beyond it byte counts would no longer fit 64 bits


def _whole(least: int, most: int) -> BeforeValidator:
    def check(value: object) -> object:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{show(value)} is not a whole number from {least} to {most}")
        return number

    return BeforeValidator(check)


def _number(test: Callable[[float], bool], words: str) -> BeforeValidator:
    def check(value: object) -> object:
        number = as_float(value)
        if number is None or not math.isfinite(number) or not test(number):
            raise ValueError(f"{show(value)} is not {words}")
        return number

    return BeforeValidator(check)


SHARE = _number(lambda share: 0 < share <= 1, "a share from above 0 to 1")


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError(f"{show(value)} is not true or false")
    return value


def _targets(value: object) -> object:
    if value == "all-linear" or value is None:
        return value
    if isinstance(value, str) and set(value) & set(PATTERN):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{show(value)} is not a regular expression: {error}") from None
        return value
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f"{show(value)} is not all-linear, a list of module names such as [q_proj, v_proj] or a pattern for "
            "whole names"
        )
    return tuple(name.strip() for name in names)


def _modules(value: object) -> object:
    if value is None:
        return None
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{show(value)} is not a list of module names such as [lm_head, embed_tokens]")
    return tuple(name.strip() for name in names)


def _layers(value: object) -> object:
    if value is None:
        return value
    numbers = [value] if isinstance(value, int) else value
    if (
        not isinstance(numbers, (list, tuple))
        or not numbers
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    ):
        raise ValueError(f"{show(value)} is not a list of numbers of layers such as [0, 1]")
    return tuple(numbers)


def _patterns(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{show(value)} is not a list of patterns of names such as ['layers.*.mlp.*', lm_head]")
    return tuple(name.strip() for name in names)


def _memory(value: object) -> object:
    count = read_bytes(value)
    return float(value) if isinstance(value, (int, float)) else count / GIB  # a number of GiB stays as it was written


def _device(value: object) -> object:
    known = catalog.devices()
    if value is not None and (not isinstance(value, str) or value not in known):
        raise ValueError(
            f"{show(value)} is not in the catalogue{nearest(str(value), known)} (devices: {', '.join(known)})"
        )
    return value


def _stack(value: object) -> object:
    if not isinstance(value, str) or value not in STACKS:
        raise ValueError(f"{show(value)} is not a stack{nearest(str(value), STACKS)} (stacks: {', '.join(STACKS)})")
    return value


def _routing(value: object) -> object:
    if isinstance(value, str) and value in ROUTINGS:
        return value
    if isinstance(value, Mapping) and set(value) == {"imbalance"}:
        number = as_float(value["imbalance"])
        if number is not None and math.isfinite(number) and number >= 1:
            return {"imbalance": number}
        raise ValueError(f"imbalance {show(value['imbalance'])} is not a number from 1 on")
    raise ValueError(f"{show(value)} is not one of {', '.join(ROUTINGS)} or a mapping such as {{imbalance: 2.0}}")


def _text(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text")
    return value or ""


def _model(value: object) -> object:
    if not isinstance(value, Mapping) and not (isinstance(value, str) and value):
        raise ValueError(
            f"{show(value)} is not a model; give a name, the path of a Hugging Face config.json, or its fields"
        )
    return dict(value) if isinstance(value, Mapping) else value


class Part(BaseModel):
    """What all parts of a Run share: no key beyond those declared, and no change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Part):
    """How the model is trained."""

    kind: Literal["full", "lora", "qlora", "ia3", "qia3"] = "full"
    rank: Annotated[int, _whole(1, 2**16)] = 8
    # or names of modules, or a pattern; null: PEFT's own for (IA)³
    targets: Annotated[str | tuple[str, ...] | None, BeforeValidator(_targets)] = "all-linear"
    dropout: Annotated[float, _number(lambda p: 0 <= p < 1, "a probability from 0 to below 1")] = 0.0
    quantization: Literal["nf4", "int8", "gptq", "awq"] = "nf4"  # qlora, qia3: how the frozen weights are stored
    group_size: Annotated[int, _whole(1, 2**20)] = 128  # gptq, awq: input features that share a scale
    double_quant: Annotated[bool, BeforeValidator(_flag)] = True
    dora: Annotated[bool, BeforeValidator(_flag)] = False
    rslora: Annotated[bool, BeforeValidator(_flag)] = False  # another scaling; of the same size
    bias: Literal["none", "all", "lora_only"] = "none"  # which of the model's biases train beside the adapters
    # only these have adapters (PEFT's layers_to_transform)
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_layers)] = None
    # ends of names of parameters with adapters of their own: experts, routers
    target_parameters: Annotated[tuple[str, ...], BeforeValidator(_modules)] = ()
    # ends of names of modules that train as a whole
    modules_to_save: Annotated[tuple[str, ...], BeforeValidator(_modules)] = ()
    # (IA)³: targets whose input is scaled, not their output
    feedforward: Annotated[tuple[str, ...] | None, BeforeValidator(_modules)] = None
    # qlora, qia3: who casts what is not quantized; TRL's trainer casts the head and embeddings back to bf16
    casts: Literal["peft", "trl", "none"] = "peft"

    @model_validator(mode="before")
    @classmethod
    def _default_targets(cls, data: Any) -> Any:
        """All-linear, but for (IA)³, whose targets PEFT knows by model_type."""
        if isinstance(data, Mapping) and data.get("targets") is None:
            return {**data, "targets": None if data.get("kind") in ("ia3", "qia3") else "all-linear"}
        return data


class Train(Part):
    """Which parameters train, by patterns of their names (passes/freeze.py); with method full."""

    only: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    freeze: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()


class Batch(Part):
    """Sequences in a micro-batch, tokens in a sequence, micro-batches in a step. An image's tokens follow from its
    model, whatever `sequence` says.
    """

    size: Annotated[int, _whole(1, 2**20)] = 1
    sequence: Annotated[int, _whole(1, 2**24)] = 512
    accumulation: Annotated[int, _whole(1, 2**12)] = 1
    # with an attention mask, if any
    padding: Annotated[float, _number(lambda share: 0 <= share < 1, "a share of the tokens from 0 to below 1")] = 0.0
    # T5: tokens that the decoder gets; null: as many as sequence
    target: Annotated[int, _whole(1, 2**24)] | None = None


class EfficiencyKeys(Part):
    """What of the device's data sheet is reached, for estimates of time (cost.py): shares of its rates, and
    microseconds of a launch.
    """

    matmul: Annotated[float, SHARE] = Efficiency.matmul
    attention: Annotated[float, SHARE] = Efficiency.attention
    memory: Annotated[float, SHARE] = Efficiency.memory
    pcie: Annotated[float, SHARE] = Efficiency.pcie
    launch_us: Annotated[float, _number(lambda us: us > 0, "a positive number of microseconds")] = round(
        1e6 * Efficiency.launch, 3
    )


class Run(Part):
    """A training job. `Run(model="qwen2.5-7b", method={"kind": "lora"})`, or `Run.load`; both raise InputError."""

    model: Annotated[str | dict[str, Any], BeforeValidator(_model)]  # a name, a path to a config.json, or its fields
    method: Method = Method()
    batch: Batch = Batch()
    train: Train = Train()
    precision: Literal["bf16", "amp-bf16", "amp-fp16", "fp32", "tf32", "fp16"] = "bf16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    checkpointing: Annotated[str | dict[str, Any], BeforeValidator(read_strategy)] = "none"  # (passes/checkpoint.py)
    # of tokens to experts, where there are any (models/common/moe.py)
    routing: Annotated[str | dict[str, float], BeforeValidator(_routing)] = "balanced"
    optimizer: Annotated[str, BeforeValidator(optimizer_name)] = "adamw"  # memsim/run/optimizer_names.py
    # an optimizer for each parameter, stepped once its gradient is there
    optimizer_in_backward: Annotated[bool, BeforeValidator(_flag)] = False
    # torch.amp.GradScaler, with amp-fp16 (schedule/grad_scaler.py)
    grad_scaler: Annotated[bool, BeforeValidator(_flag)] = False
    clip_grad_norm: Annotated[float, _number(lambda norm: norm > 0, "a positive number or null")] | None = None
    fsdp: Annotated[int, _whole(1, 2**16)] = 1
    allocator: Annotated[str, BeforeValidator(_text)] = ""
    # the driver's (allocator/compiled/linux_addresses.py): they decide ties in PyTorch up to 2.12
    addresses: Literal["ascending", "linux"] = "ascending"
    # a catalogue name: sets the next two where they are not given
    device: Annotated[str | None, BeforeValidator(_device)] = None
    device_memory_gib: Annotated[float, BeforeValidator(_memory)] = 80.0
    sm: Annotated[int, _whole(30, 200)] = 80  # compute capability times ten
    steps: Annotated[int, _whole(1, 10_000)] = 3
    efficiency: EfficiencyKeys = EfficiencyKeys()  # of the time estimate
    stack: Annotated[str, BeforeValidator(_stack)] = "golden"  # the versions of the framework (memsim/stacks/known.py)

    _resolved: Resolved = PrivateAttr()
    _name: str = PrivateAttr("")
    _argument: str = PrivateAttr("")
    _place: str = PrivateAttr(KEYWORDS)

    def __init__(self, **data: Any) -> None:
        _fill(self, data, KEYWORDS, Path(), ())

    @classmethod
    def load(cls, source: str | Path | Mapping[str, object] | Run, *, set: Sequence[str] = ()) -> Run:
        """A Run from a YAML file, a name (an example run, or a model for a run with defaults), a mapping, or another
        Run.

        `set` changes keys: "batch.sequence=4096". A model's path is relative to the YAML file. Raises InputError.
        """
        if isinstance(source, Run):
            data, name, where, folder, argument = source.plain(), source.name, "run", Path(), source._argument
        elif isinstance(source, Mapping):
            data, name, where, folder, argument = yamlfile.mapping(source, "run"), "", "run", Path(), ""
        else:
            data, name, where, folder = _read(source)
            argument = shlex.quote(str(source))
        changes = tuple(_change(text) for text in set)
        data = _changed(data, changes)
        run = cls.__new__(cls)
        _fill(run, data, where, folder, tuple(key for key, _ in changes))
        run._name, run._place = name, where
        run._argument = " ".join([argument, *(f"--set {shlex.quote(text)}" for text in set)]) if argument else ""
        return run

    @property
    def config(self) -> Mapping[str, object]:
        """The model's Hugging Face config fields."""
        return self._resolved.config

    @property
    def model_name(self) -> str:
        """The model in a word: its catalogue name, or what its config calls it."""
        return self._resolved.name

    @property
    def name(self) -> str:
        """The run in a word: its file's or its example's name, or its model and method."""
        return self._name or f"{self.model_name}-{self.method.kind}"

    @property
    def argument(self) -> str:
        """What names this Run on a command line, its --set included; empty where it came from no file or name."""
        return self._argument

    @property
    def place(self) -> str:
        """Where this Run came from, as errors name it: its file, "NAME (example)", "keyword arguments"."""
        return self._place

    @property
    def device_bytes(self) -> int:
        """Memory of the device in bytes."""
        return int(self.device_memory_gib * GIB)

    def plain(self) -> dict[str, object]:
        """Every key as plain data. A model that was read from a file is written out, so that the Run
        stands for itself.
        """
        data = self.model_dump(mode="json")
        data["model"] = dict(self.config) if self._resolved.from_file else data["model"]
        for key in ("device_memory_gib", "clip_grad_norm"):
            value = data[key]
            data[key] = int(value) if isinstance(value, float) and value.is_integer() else value
        return data

    def to_yaml(self) -> str:
        """The Run as a YAML file with every key, except those that follow from `device`."""
        data = self.plain()
        given = _of_device(self.device)
        return yamlfile.dump({key: value for key, value in data.items() if key not in given or given[key] != value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(self.to_yaml())


def _fill(run: Run, data: Mapping[str, Any], where: str, folder: Path, changed: tuple[str, ...]) -> None:
    """Validates `data` into `run`. `changed` are the keys that came from --set, and are named so in errors."""

    def fail(key: str, reason: str) -> InputError:
        place = (
            "--set" if any(f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.") for k in changed) else where
        )
        return InputError(_printable(f"{place}: {key}: {reason}" if key else f"{place}: {reason}"))

    given = _of_device(data.get("device"))
    try:
        BaseModel.__init__(run, **{**given, **data})
    except ValidationError as error:
        raise fail(*explain(error, Run)) from None
    if run.batch.size * run.batch.sequence > LARGEST_BATCH:
        raise fail("batch", f"{run.batch.size} × {run.batch.sequence} tokens are more than {LARGEST_BATCH}")
    try:
        run._resolved = resolve(run.model, folder)
    except InputError as error:
        key, _, reason = str(error).partition(": ")
        raise fail(key, reason) from None


def _printable(line: str) -> str:
    """`line` with what would break it, or would command a terminal, written as Python writes it: keys and values come
    from anyone's file.
    """
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _of_device(name: object) -> dict[str, object]:
    """The keys that a device of the catalogue sets."""
    device = catalog.devices().get(name) if isinstance(name, str) else None
    if device is None:
        return {}
    memory: dict[str, object] = {"device_memory_gib": device.memory / GIB}
    return memory if device.sm is None else {**memory, "sm": device.sm}


def _read(source: str | Path) -> tuple[dict[str, object], str, str, Path]:
    """The mapping behind a path or a name; the Run's name; what to call it in errors; the folder that paths in it are
    relative to.
    """
    text = str(source)
    examples, path = catalog.examples(), Path(text)
    if isinstance(source, str) and text in examples:
        return yamlfile.read_mapping(examples[text]), text, f"{text} (example)", examples[text].parent
    if isinstance(source, str) and text in catalog.models():
        return {"model": text}, text, text, Path()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name too long for a file, or with a zero byte
        exists = False
    if exists:
        return yamlfile.read_mapping(path), path.stem, text, path.parent
    if path.suffix.lower() in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        raise InputError(f"{text}: no such file; give a YAML file or one of the runs {', '.join(examples)}")
    hint = nearest(text, [*examples, *catalog.models()])
    raise InputError(
        f"{text!r}: neither a file nor a name of the catalogue{hint} (runs: {', '.join(examples)}; `memsim models` "
        "lists the models)"
    )


def _change(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(key.strip().split(".")):
        raise InputError(f"--set {text!r}: write KEY=VALUE, such as batch.sequence=4096")
    return key.strip(), yamlfile.parse(value, f"--set {key.strip()}")


def _changed(data: Mapping[str, object], changes: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A copy of `data` with the changes made, nested mappings made where they are missing."""
    result = dict(data)
    # a device that is asked for decides, whatever the file says of another
    if any(key == "device" and value is not None for key, value in changes):
        result = {key: value for key, value in result.items() if key not in ("device_memory_gib", "sm")}
    for key, value in changes:
        *outer, last = key.split(".")
        level = result
        for depth, name in enumerate(outer):
            inner = level.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                at = ".".join(outer[: depth + 1])
                raise InputError(f"--set: {key}: {at} is {show(inner)}, which has no keys")
            level[name] = copy = dict(inner or {})
            level = copy
        level[last] = value
    return result
