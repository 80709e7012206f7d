"""Graph → Tape: the order of load, forward, backward, recomputation, accumulation and optimizer."""
