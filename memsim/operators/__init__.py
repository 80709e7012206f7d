"""The operator table: what each operator does to memory and time, forward and backward. No model names in it."""

from __future__ import annotations

from memsim.operators.attention import EfficientAttention, FlashAttention
from memsim.operators.base import Kind
from memsim.operators.creation import BiasOfMask, Compare, CountTrue, Create, CumulativeSum, Tril
from memsim.operators.elementwise import (
    Add,
    AddInPlace,
    AddScalar,
    Cast,
    Clamp,
    ClampInPlace,
    Clone,
    Div,
    Dropout,
    Mul,
    Rsqrt,
    SavesInput,
    SavesResult,
    Square,
    Sub,
    Unary,
)
from memsim.operators.grouped import GroupedLinear
from memsim.operators.linear4bit import Dequantize4bit, Linear4bit, Recast
from memsim.operators.linear8bit import Linear8bit
from memsim.operators.loss import NllLoss
from memsim.operators.matmul import BatchedMatmul, BatchedMultiplyAdd, Linear, Mm
from memsim.operators.norm import Conv1D, LayerNorm
from memsim.operators.packed4bit import Dequantize, LinearAwq
from memsim.operators.reductions import LogSoftmax, MaxLast, MeanLast, RowNorm, SafeSoftmax, Softmax
from memsim.operators.routing import DivideInPlace, Index, Scan, Sort, Sum, TopK
from memsim.operators.shapes import Cat, Chunk, Embedding, Expand, Layers, Pad, Reshape, Slice, Stack, Transpose, View

KINDS: dict[str, Kind] = {
    "add": Add(),
    "add_": AddInPlace(),
    "add_scalar": AddScalar(),
    "arange": Create(),
    "baddbmm": BatchedMultiplyAdd(),
    "cast": Cast(),
    "cat": Cat(),
    "bias_of_mask": BiasOfMask(),
    "chunk": Chunk(),
    "clamp": Clamp(),
    "clamp_": ClampInPlace(),
    "clone": Clone(),
    "compare": Compare(),
    "conv1d": Conv1D(),
    "count_true": CountTrue(),
    "cos": SavesInput(),
    "create": Create(),
    "cumsum": CumulativeSum(),
    "dequantize": Dequantize(),
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
    "linear8bit": Linear8bit(),
    "linear_awq": LinearAwq(),
    "log_softmax": LogSoftmax(),
    "matmul": BatchedMatmul(),
    "max": MaxLast(),
    "mean": MeanLast(),
    "mm": Mm(),
    "mul": Mul(),
    "mul_scalar": Unary(),
    "neg": Unary(),
    "nll_loss": NllLoss(),
    "pad": Pad(),
    "pow": Square(),
    "recast": Recast(),
    "relu": SavesResult(),
    "row_norm": RowNorm(),
    "reshape": Reshape(),
    "rsqrt": Rsqrt(),
    "safe_softmax": SafeSoftmax(),
    "scan": Scan(),
    "sigmoid": SavesResult(),
    "silu": SavesInput(),
    "sin": SavesInput(),
    "slice": Slice(),
    "softmax": Softmax(),
    "stack": Stack(),
    "sort": Sort(),
    "square": Square(),
    "tanh": SavesResult(),
    "sub": Sub(),
    "sum": Sum(),
    "topk": TopK(),
    "tril": Tril(),
    "transpose": Transpose(),
    "view": View(),
}
