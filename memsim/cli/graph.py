"""What `memsim graph` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.cli import console
from memsim.cli.running import inputs_of, loaded, naming
from memsim.report.graph.graph_page import write_graph_html
from memsim.simulation.build import model_of


def run(source: str, settings: Sequence[str] | None, output: Path) -> None:
    """The command. Raises InputError."""
    job = loaded(source, settings)
    console.output(output, (".html",), inputs_of(source, job))
    with naming(job), console.written(output) as path:
        write_graph_html(model_of(job), path, job.model_name)
    console.note(f"memsim: wrote {output}")
