"""The layer graph: operators and the storages between them, the layout of tensors, and their dtypes."""

from __future__ import annotations

from memsim.graph.layer_graph import LayerGraph as LayerGraph, Operator as Operator, TensorSpec as TensorSpec
