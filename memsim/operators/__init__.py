"""The operator table: what each operator does to memory and time, forward and backward. No model names in it."""

from __future__ import annotations

from memsim.operators.attention import EfficientAttention, FlashAttention
from memsim.operators.base import Kind
from memsim.operators.creation import Compare, Create, CumulativeSum
from memsim.operators.elementwise import Add, AddScalar, Cast, Clone, Div, Dropout, Mul, Rsqrt, SavesInput, SavesResult, Square, Sub, Unary
from memsim.operators.grouped import GroupedLinear
from memsim.operators.linear4bit import Dequantize4bit, Linear4bit, Recast
from memsim.operators.loss import NllLoss
from memsim.operators.matmul import BatchedMatmul, BatchedMultiplyAdd, Linear, Mm
from memsim.operators.norm import Conv1D, LayerNorm
from memsim.operators.reductions import LogSoftmax, MeanLast, RowNorm, Softmax
from memsim.operators.routing import DivideInPlace, Index, Scan, Sort, Sum, TopK
from memsim.operators.shapes import Cat, Chunk, Embedding, Expand, Layers, Reshape, Slice, Transpose, View

KINDS: dict[str, Kind] = {
    "add": Add(),
    "add_scalar": AddScalar(),
    "arange": Create(),
    "baddbmm": BatchedMultiplyAdd(),
    "cast": Cast(),
    "cat": Cat(),
    "chunk": Chunk(),
    "clone": Clone(),
    "compare": Compare(),
    "conv1d": Conv1D(),
    "cos": SavesInput(),
    "create": Create(),
    "cumsum": CumulativeSum(),
    "dequantize4bit": Dequantize4bit(),
    "div": Div(),
    "divide_": DivideInPlace(),
    "dropout": Dropout(),
    "efficient_attention": EfficientAttention(),
    "embedding": Embedding(),
    "expand": Expand(),
    "flash_attention": FlashAttention(),
    "gelu": SavesInput(),
    "grouped_linear": GroupedLinear(),
    "index": Index(),
    "layer_norm": LayerNorm(),
    "layers": Layers(),
    "linear": Linear(),
    "linear4bit": Linear4bit(),
    "log_softmax": LogSoftmax(),
    "matmul": BatchedMatmul(),
    "mean": MeanLast(),
    "mm": Mm(),
    "mul": Mul(),
    "mul_scalar": Unary(),
    "neg": Unary(),
    "nll_loss": NllLoss(),
    "pow": Square(),
    "recast": Recast(),
    "relu": SavesResult(),
    "row_norm": RowNorm(),
    "reshape": Reshape(),
    "rsqrt": Rsqrt(),
    "scan": Scan(),
    "sigmoid": SavesResult(),
    "silu": SavesInput(),
    "sin": SavesInput(),
    "slice": Slice(),
    "softmax": Softmax(),
    "sort": Sort(),
    "square": Square(),
    "tanh": SavesResult(),
    "sub": Sub(),
    "sum": Sum(),
    "topk": TopK(),
    "transpose": Transpose(),
    "view": View(),
}
