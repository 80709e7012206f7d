"""The Timeline: what a Tape and an allocator's answer say, event by event, as curves, peaks,
lifetimes, the block map.
"""

from __future__ import annotations

from memsim.timeline.about import About as About
from memsim.timeline.curves import Curves as Curves
