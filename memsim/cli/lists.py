"""What `memsim models`, `memsim devices` and `memsim stacks` print."""

from __future__ import annotations

import json

from memsim import catalog
from memsim.cli import console, tables
from memsim.stacks.known import STACKS


def models(as_json: bool) -> None:
    """The catalogue's models, and the Runs that ship."""
    if as_json:
        print(json.dumps(tables.plain(catalog.models()), indent=1))
        return
    screen = console.out()
    screen.print(tables.models(catalog.models()))
    if catalog.examples():
        screen.print(f"Runs that ship with memsim: {', '.join(catalog.examples())}", markup=False, soft_wrap=True)


def devices(as_json: bool) -> None:
    """The catalogue's devices."""
    if as_json:
        print(json.dumps(tables.devices_json(catalog.devices()), indent=1))
        return
    screen = console.out()
    screen.print(tables.devices(catalog.devices()))
    screen.print(
        "usable: what PyTorch was seen to report of a device, less the context; ~ where nobody was seen to say: the "
        "data sheet's less 3 %, less the context",
        markup=False,
        soft_wrap=True,
    )


def stacks(as_json: bool) -> None:
    """The stacks, and in what each differs from the golden one."""
    if as_json:
        print(json.dumps(tables.stacks_json(STACKS), indent=1))
        return
    for rows in tables.stacks(STACKS):
        console.out().print(rows, "")
