"""Code that families share: attention, masks, norms, losses, rotary embeddings, experts, and the
assembly of a model.
"""
