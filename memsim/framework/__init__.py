"""What a model family is written with: a builder that follows Python's names, PyTorch's functions, the Model itself."""
