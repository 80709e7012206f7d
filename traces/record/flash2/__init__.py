"""flash-attn for the virtual GPU."""
