"""The page of `memsim graph`: a layer's operators, drawn."""
