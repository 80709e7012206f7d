"""What families share: attention, masks, norms, losses, rotary embeddings, experts, and how a model is put together."""
