"""The caching allocator's state machine, compiled by numba: plain arrays in, plain arrays out."""
