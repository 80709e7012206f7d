"""Estimated time: the work that an operator asks of the device, and the time that the device takes for it."""

from __future__ import annotations

from memsim.cost.efficiency import Efficiency as Efficiency
from memsim.cost.roofline import Rates as Rates
from memsim.cost.work import Work as Work
