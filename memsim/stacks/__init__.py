"""Software stacks: versions of the framework, and their differences. Imports nothing of memsim."""

from __future__ import annotations

from memsim.stacks.known import GOLDEN as GOLDEN, STACKS as STACKS, stack_of_versions as stack_of_versions
from memsim.stacks.software import Software as Software
