"""Optimizers: their state, their temporaries, the order of both."""
