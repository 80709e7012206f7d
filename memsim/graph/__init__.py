"""The layer graph: operators and the storages between them, how tensors are laid out, and their dtypes."""
