"""What `memsim validate --published` does and prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memsim.cli import console, tables
from memsim.cli.console import print_json
from memsim.cli.running import simulated_as_recorded
from memsim.validation import published
from memsim.validation.published import PARTS, Measured


def run(path: Path, as_json: bool) -> None:
    """The command. Raises InputError."""
    rows = published.load(path)
    console.say_if_cold()
    found = published.with_simulations(rows, simulated_as_recorded)
    if as_json:
        print_json(published.to_json(found))
    else:
        console.out().print(published_table(found))


def published_table(found: list[Measured]) -> Group:
    """The simulated rows, the sources, and why the others are left out."""
    grid = tables.grid("row", "metric", "published GiB", "simulated GiB", "error %", left=2)
    for row in found:
        if row.simulated is not None and row.published is not None:
            cells = [
                row.id,
                row.metric.replace("_", " "),
                f"{row.published / 2**30:.4f}",
                f"{row.simulated / 2**30:.4f}",
                f"{row.error:+.4f}",
            ]
            grid.add_row(*[Text(cell) for cell in cells])
    return Group(grid, "", _sources(found), "", _differences(found), "", _reasons(found))


def _sources(found: list[Measured]) -> Table:
    grid = tables.grid("source", "rows", "simulated", "median error %", "worst %")
    for source, differs in dict.fromkeys(
        (row.source, row.differs if row.simulated is not None else "") for row in found
    ):
        rows = [row for row in found if row.source == source]
        errors = [abs(row.error) for row in rows if row.simulated is not None and row.differs == differs]
        if not errors and any(row.simulated is not None for row in rows):
            continue
        name = f"{source} (nvidia-smi)" if differs in PARTS.values() else source
        grid.add_row(
            Text(name),
            str(len(rows)),
            str(len(errors)),
            f"{median(errors):.4f}" if errors else "–",
            f"{max(errors):.4f}" if errors else "–",
        )
    return grid


def _differences(found: list[Measured]) -> Group:
    """For each source whose code, or whose measure, is not memsim's: in what they part."""
    rows = dict.fromkeys((row.source, row.differs) for row in found if row.differs)
    return Group(*[Text(f"{source}: {differs}.") for source, differs in rows])


def _reasons(found: list[Measured]) -> Table:
    grid = tables.grid("not simulated, because", "rows")
    for reason, count in Counter(row.reason for row in found if row.reason).most_common():
        grid.add_row(Text(reason), str(count))
    return grid
