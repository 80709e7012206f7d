"""The Run: what a person says about a training job, validated, with an error message that names the file and the key.

Units: sequence in tokens, device_memory_gib in GiB. The keys are those of the recordings (`run` in their results).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, PrivateAttr, ValidationError

from memsim.errors import InputError
from memsim.run import values, yamlfile
from memsim.run.checkpointing import read_strategy
from memsim.run.defaults import unsaid
from memsim.run.explain import explain
from memsim.run.hub import is_name
from memsim.run.keys import Batch, EfficiencyKeys, Method, Part, Train
from memsim.run.model_reference import Resolved, resolve
from memsim.run.optimizer_names import optimizer_name
from memsim.run.quantized_config import settled
from memsim.run.sources import change, changed_by, keys_of_device, read
from memsim.units import GIB

KEYWORDS = "keyword arguments"
MOST_SHOWN = 8  # keys that are wrong, in an error
LARGEST_BATCH = 2**28  # tokens; beyond it byte counts would no longer fit 64 bits


class Run(Part):
    """A training job: `Run(model="qwen2.5-7b", method={"kind": "lora"})`, or `Run.load`. Both raise InputError."""

    # a name, a path to a config.json, or its fields
    model: Annotated[str | dict[str, Any], BeforeValidator(values.model)]
    method: Method = Method()
    batch: Batch = Batch()
    train: Train = Train()
    precision: Literal["bf16", "amp-bf16", "amp-fp16", "fp32", "tf32", "fp16"] = "bf16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    checkpointing: Annotated[str | dict[str, Any], BeforeValidator(read_strategy)] = "none"  # (passes/checkpoint.py)
    # how tokens go to experts, where there are any (models/common/moe.py)
    routing: Annotated[str | dict[str, float], BeforeValidator(values.routing)] = "balanced"
    optimizer: Annotated[str, BeforeValidator(optimizer_name)] = "adamw"  # memsim/run/optimizer_names.py
    # each parameter has an optimizer of its own, which steps once the gradient is there
    optimizer_in_backward: Annotated[bool, BeforeValidator(values.flag)] = False
    # torch.amp.GradScaler, with amp-fp16 (schedule/grad_scaler.py)
    grad_scaler: Annotated[bool, BeforeValidator(values.flag)] = False
    clip_grad_norm: Annotated[float, values.number(lambda norm: norm > 0, "a positive number or null")] | None = None
    fsdp: Annotated[int, values.whole(1, 2**16)] = 1
    allocator: Annotated[str, BeforeValidator(values.text)] = ""
    # Addresses of the driver (allocator/compiled/linux_addresses.py). They decide ties in PyTorch up to 2.12.
    addresses: Literal["ascending", "linux"] = "ascending"
    # a catalogue name: sets the next two where they are not given, memory to what PyTorch sees of it less the context
    device: Annotated[str | None, BeforeValidator(values.device)] = None
    device_memory_gib: Annotated[float, BeforeValidator(values.memory)] = 80.0
    sm: Annotated[int, values.whole(30, 200)] = 80  # compute capability times ten
    steps: Annotated[int, values.whole(1, 10_000)] = 3
    efficiency: EfficiencyKeys = EfficiencyKeys()  # for the time estimate
    stack: Annotated[str, BeforeValidator(values.stack)] = (
        "golden"  # the versions of the framework (memsim/stacks/known.py)
    )

    _resolved: Resolved = PrivateAttr()
    _name: str = PrivateAttr("")
    _argument: str = PrivateAttr("")
    _place: str = PrivateAttr(KEYWORDS)

    def __init__(self, **data: Any) -> None:
        _fill(self, data, KEYWORDS, Path(), ())

    @classmethod
    def load(cls, source: str | Path | Mapping[str, object] | Run, *, set: Sequence[str] = ()) -> Run:
        """A Run from a YAML file, a name (an example run, or a model for a run with defaults), a model's config.json, a
        mapping, or another Run.

        `set` changes keys: "batch.sequence=4096". A model's path is relative to the YAML file. Raises InputError.
        """
        if isinstance(source, Run):
            data, name, where, folder, argument = source.plain(), source.name, "run", Path(), source._argument
        elif isinstance(source, Mapping):
            data, name, where, folder, argument = yamlfile.mapping(source, "run"), "", "run", Path(), ""
        else:
            data, name, where, folder = read(source)
            argument = shlex.quote(str(source))
        changes = tuple(change(text) for text in set)
        data = changed_by(data, changes, folder)
        run = cls.__new__(cls)
        _fill(run, data, where, folder, tuple(key for key, _ in changes))
        run._name, run._place = name, where
        run._argument = " ".join([argument, *(f"--set {shlex.quote(text)}" for text in set)]) if argument else ""
        return run

    @property
    def config(self) -> Mapping[str, object]:
        """The fields of the model's Hugging Face config."""
        return self._resolved.config

    @property
    def model_name(self) -> str:
        """A short name of the model: its catalogue name, or what its config calls it."""
        return self._resolved.name

    @property
    def name(self) -> str:
        """A short name of the run: that of its file or example, or its model and method."""
        return self._name or f"{self.model_name}-{self.method.kind}"

    @property
    def argument(self) -> str:
        """The arguments that name this Run on a command line, including its --set. Empty where it came from no file or
        name.
        """
        return self._argument

    @property
    def place(self) -> str:
        """The place that this Run came from, as errors name it: its file, "NAME (example)", "keyword arguments"."""
        return self._place

    @property
    def model_file(self) -> Path | None:
        """The config.json that the model was read from; None where it came from elsewhere."""
        return self._resolved.path

    @property
    def device_bytes(self) -> int:
        """Memory that PyTorch's allocator can have of the device, in bytes."""
        return int(self.device_memory_gib * GIB)

    def plain(self) -> dict[str, object]:
        """Returns every key as plain data. A model that was read from a file is written out, so that the Run stands for
        itself.
        """
        data = self.model_dump(mode="json")
        data["model"] = dict(self.config) if self._resolved.from_file else data["model"]
        for key in ("device_memory_gib", "clip_grad_norm"):
            value = data[key]
            data[key] = int(value) if isinstance(value, float) and value.is_integer() else value
        return data

    def to_yaml(self) -> str:
        """Writes the Run as a YAML file with every key, except those that follow from `device`."""
        data = self.plain()
        given = keys_of_device(self.device)
        return yamlfile.dump({key: value for key, value in data.items() if key not in given or given[key] != value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(self.to_yaml())


def _fill(run: Run, data: Mapping[str, Any], where: str, folder: Path, changed: tuple[str, ...]) -> None:
    """Validates `data` into `run`. `changed` are the keys that came from --set; errors name them so."""

    def fail(key: str, reason: str) -> InputError:
        inside = any(f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.") for k in changed)
        fields = key.startswith("model.") and any(k.startswith("model.") for k in changed)  # a field against another
        place = "--set" if inside or fields else where
        return InputError(_printable(f"{place}: {key}: {reason}" if key else f"{place}: {reason}"))

    given = keys_of_device(data.get("device"))
    try:
        BaseModel.__init__(run, **{**given, **data})
    except ValidationError as error:
        wrong = [*explain(error, Run), *_wrong_fields(data.get("model"), folder)]
        raise _together([fail(key, reason) for key, reason in wrong]) from None
    if run.batch.size * run.batch.sequence > LARGEST_BATCH:
        raise fail("batch", f"{run.batch.size} × {run.batch.sequence} tokens are more than {LARGEST_BATCH}")
    try:
        run._resolved = resolve(run.model, folder)
        found = unsaid(run.config, run.sm, run.model_fields_set)
        run.__dict__.update(found, method=settled(run.method, run.config))  # frozen for everyone else
    except InputError as error:
        key, _, reason = str(error).partition(": ")
        raise type(error)(str(fail(key, reason))) from None


def _wrong_fields(model: object, folder: Path) -> list[tuple[str, str]]:
    """What is wrong with a model, where other keys are wrong too; nothing is fetched to know it."""
    try:
        if isinstance(model, Mapping) or (isinstance(model, str) and not is_name(model)):
            resolve(model, folder)
    except InputError as error:
        key, _, reason = str(error).partition(": ")
        return [(key, reason)]
    return []


def _together(errors: Sequence[InputError]) -> InputError:
    """All errors in a line; MOST_SHOWN of them in full."""
    first, *more = (str(error) for error in errors)
    place = first.partition(": ")[0]
    rest = "".join(f"; and {line.removeprefix(f'{place}: ')}" for line in more[: MOST_SHOWN - 1])
    left = len(errors) - MOST_SHOWN
    return InputError(f"{first}{rest}{f'; and {left} more' if left > 0 else ''}")


def _printable(line: str) -> str:
    """Returns `line` with the characters that would break it, or would command a terminal, written as Python escapes.
    Keys and values come from anyone's file.
    """
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
