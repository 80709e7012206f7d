"""What `memsim keys` prints."""

from __future__ import annotations

from rich.text import Text

from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.run.listing import keys_of_run


def run(as_json: bool) -> None:
    """The command."""
    listed = keys_of_run()
    if as_json:
        print_json({"keys": [key.to_json() for key in listed]})
        return
    grid = tables.grid("key", "default", "what it is", "values", left=4)
    for key in listed:
        grid.add_row(*[Text(cell) for cell in (key.key, key.shown, key.description, key.values)])
    console.out().print(grid)
