"""Run → Timeline: builds the model, records its Tape, asks the allocator."""
