"""What memsim knows by name: models, devices and example runs. Data in JSON and YAML, loaded once, when first asked
for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Link:
    """A connection of a device; bandwidth in bytes a second, in each direction."""

    name: str  # "NVLink 4", "PCIe 5 x16"
    bandwidth: float


@dataclass(frozen=True)
class Device:
    """An accelerator as its vendor's data sheet describes it."""

    name: str  # in the catalogue: "a100-80gb"
    label: str  # for people: "A100-80GB"
    title: str  # in full: "NVIDIA A100 SXM4 80GB"
    memory: int  # bytes; the data sheet's gigabytes are GiB. Driver and CUDA context take their part of it
    compute_capability: str | None  # "8.0"; None where it is not NVIDIA's
    processors: int  # streaming multiprocessors, or AMD's compute units
    # dense operations a second by dtype; tensor cores, with fp32 accumulation for 16 bits, where there are any
    flops: Mapping[str, float]
    memory_bandwidth: float  # bytes a second
    link: Link | None  # to its like: all links of the device together
    pcie: Link
    datasheet: str  # where the numbers come from

    @property
    def sm(self) -> int | None:
        """Compute capability times ten, as a Run says it."""
        return None if self.compute_capability is None else round(float(self.compute_capability) * 10)


@cache
def models() -> Mapping[str, Mapping[str, object]]:
    """Hugging Face config fields by model name."""
    data: dict[str, dict[str, object]] = json.loads((HERE / "models.json").read_text(encoding="utf-8"))
    return MappingProxyType({name: MappingProxyType(fields) for name, fields in data.items()})


@cache
def devices() -> Mapping[str, Device]:
    """Devices by name, smallest memory first within a generation."""
    data = json.loads((HERE / "devices.json").read_text(encoding="utf-8"))
    return MappingProxyType({name: _device(name, fields) for name, fields in data.items()})


def _device(name: str, fields: dict[str, object]) -> Device:
    links = {key: None if fields[key] is None else Link(**fields[key]) for key in ("link", "pcie")}  # type: ignore[arg-type]
    return Device(name=name, **{**fields, **links, "flops": MappingProxyType(fields["flops"])})  # type: ignore[arg-type]


@cache
def examples() -> Mapping[str, Path]:
    """Example runs by name. An installed memsim carries them inside the package, a source tree beside it."""
    for folder in (HERE.parent / "examples", HERE.parent.parent / "examples"):
        found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        if found:
            return MappingProxyType(found)
    return MappingProxyType({})
