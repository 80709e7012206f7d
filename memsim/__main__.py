"""`python -m memsim`."""

from __future__ import annotations

import sys

from memsim.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
