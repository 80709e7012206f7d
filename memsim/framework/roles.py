"""Names by which passes mark parameters for the schedule (Parameter.module)."""

from __future__ import annotations

MAGNITUDE = "magnitude"  # Parameter.module
MAGNITUDE_NAME = "lora_magnitude_vector.weight"
COPY = "copy"  # Parameter.module of a copy
