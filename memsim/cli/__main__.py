"""`python -m memsim.cli`."""

from __future__ import annotations

import sys

from memsim.cli.entry import main

sys.exit(main())
