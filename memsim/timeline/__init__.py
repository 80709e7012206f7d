"""The Timeline: what a Tape and an allocator's answer say, event by event: curves, peaks, lifetimes, the block map."""
