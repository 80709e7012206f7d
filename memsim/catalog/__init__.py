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
from typing import Any

HERE = Path(__file__).parent
GIB = 2**30
UNSEEN = 0.97  # of the data sheet's memory, where nobody was seen to say what PyTorch reports


@dataclass(frozen=True)
class Link:
    """A connection of a device; bandwidth in bytes a second, in each direction."""

    name: str  # "NVLink 4", "PCIe 5 x16"
    bandwidth: float


@dataclass(frozen=True)
class Device:
    """An accelerator as its vendor's data sheet describes it, and what of its memory training gets."""

    name: str  # in the catalogue: "a100-80gb"
    label: str  # for people: "A100-80GB"
    title: str  # in full: "NVIDIA A100 SXM4 80GB"
    memory: int  # bytes by the data sheet, whose gigabytes are GiB
    total: int | None  # the fewest bytes that PyTorch was seen to report of it; None where it was not seen
    context: int  # bytes that the process's context takes before the allocator has any
    compute_capability: str | None  # "8.0"; None where it is not NVIDIA's, and known by its memory alone
    processors: int | None  # streaming multiprocessors, or AMD's compute units
    # dense operations a second by dtype; tensor cores, with fp32 accumulation for 16 bits, where there are any
    flops: Mapping[str, float]
    memory_bandwidth: float | None  # bytes a second
    link: Link | None  # to its like: all links of the device together
    pcie: Link | None  # to the host
    datasheet: str  # where memory and rates come from
    sources: Mapping[str, str]  # where total and context come from, in words

    @property
    def sm(self) -> int | None:
        """Compute capability times ten, as a Run says it."""
        return None if self.compute_capability is None else round(float(self.compute_capability) * 10)

    @property
    def reported(self) -> int:
        """Bytes that PyTorch reports of it, at the least: as seen, or the data sheet's less 3 %."""
        return int(self.memory * UNSEEN) if self.total is None else self.total

    @property
    def usable(self) -> int:
        """Bytes that PyTorch's allocator can have."""
        return self.reported - self.context

    @property
    def counted(self) -> str:
        """What `usable` counts, in words."""
        total = f"{self.reported / GIB:.2f} GiB"
        seen = (
            f"the {total} that PyTorch sees"
            if self.total is not None
            else f"about {total} (the data sheet's {self.memory // GIB} GiB less 3 %)"
        )
        return f"{seen}, less {self.context / GIB:.2f} GiB of {'CUDA ' if self.sm is not None else ''}context"


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


def _device(name: str, fields: dict[str, Any]) -> Device:
    links = {key: None if fields[key] is None else Link(**fields[key]) for key in ("link", "pcie")}
    frozen = {key: MappingProxyType(fields[key]) for key in ("flops", "sources")}
    return Device(name=name, **{**fields, **links, **frozen})


@cache
def examples() -> Mapping[str, Path]:
    """Example runs by name. An installed memsim carries them inside the package, a source tree beside it."""
    for folder in (HERE.parent / "examples", HERE.parent.parent / "examples"):
        found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        if found:
            return MappingProxyType(found)
    return MappingProxyType({})
