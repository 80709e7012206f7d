"""Estimated time: what an operator asks of the device, and how long the device takes for it."""
