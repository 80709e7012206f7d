"""The command line: a module for each command, and the tables that they print."""

from __future__ import annotations

from memsim.cli.entry import app as app, main as main
