"""What `memsim models`, `memsim devices` and `memsim stacks` print."""

from __future__ import annotations

from memsim import catalog
from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.stacks.known import STACKS


def models(as_json: bool) -> None:
    """The catalogue's models, and the Runs that ship."""
    if as_json:
        print_json({name: tables.plain(fields) for name, fields in catalog.models().items()})
        return
    screen = console.out()
    screen.print(tables.models(catalog.models()))
    if catalog.examples():
        screen.print(f"Runs that ship with memsim: {', '.join(catalog.examples())}", markup=False, soft_wrap=True)


def devices(as_json: bool) -> None:
    """The catalogue's devices."""
    if as_json:
        print_json(tables.devices_json(catalog.devices()))
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
        print_json(tables.stacks_json(STACKS))
        return
    for rows in tables.stacks(STACKS):
        console.out().print(rows, "")
