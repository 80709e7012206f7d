"""The operator table: what each operator does to memory and time, forward and backward. No model names in it."""

from __future__ import annotations

from memsim.operators.attention import EfficientAttention, FlashAttention
from memsim.operators.base import Kind
from memsim.operators.complex import ComplexMul, ViewAsComplex, ViewAsReal
from memsim.operators.convolution import Conv2d
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
    WhereElse,
)
from memsim.operators.flash_attn import FlashAttn, FlashAttnVarlen
from memsim.operators.grouped import GroupedLinear
from memsim.operators.linear4bit import Dequantize4bit, Linear4bit, Recast
from memsim.operators.linear8bit import Dequantize8bit, Linear8bit
from memsim.operators.loss import NllLoss
from memsim.operators.matmul import BatchedMatmul, BatchedMultiplyAdd, Linear, Mm, MultiplyAdd
from memsim.operators.norm import LayerNorm
from memsim.operators.packed4bit import Dequantize, LinearAwq
from memsim.operators.python_gelu import PythonGelu
from memsim.operators.reductions import LogSoftmax, MaxLast, MeanLast, RowNorm, SafeSoftmax, Softmax
from memsim.operators.routing import DivideInPlace, Gather, Index, LargestInGroup, MaskedFill, Scan, Sort, Sum, TopK
from memsim.operators.selection import AnyInfinite, ClampByTensors, Where
from memsim.operators.shapes import Cat, Chunk, CopySlice, Embedding, Expand, Layers, NewLeaf, Pad, Reshape, Select, Slice, Split, Stack, Transpose, View
from memsim.operators.unpadding import AllLast, CountRows, Nonzero, PutRows, ReduceAll

KINDS: dict[str, Kind] = {
    "add": Add(),
    "add_": AddInPlace(),
    "add_scalar": AddScalar(),
    "all": ReduceAll(),
    "all_last": AllLast(),
    "addmm": MultiplyAdd(),
    "any_infinite": AnyInfinite(),
    "arange": Create(),
    "baddbmm": BatchedMultiplyAdd(),
    "cast": Cast(),
    "cat": Cat(),
    "bias_of_mask": BiasOfMask(),
    "chunk": Chunk(),
    "clamp": Clamp(),
    "clamp_": ClampInPlace(),
    "clamp_by_tensors": ClampByTensors(),
    "clone": Clone(),
    "compare": Compare(),
    "complex_mul": ComplexMul(),
    "conv2d": Conv2d(),
    "count_rows": CountRows(),
    "copy_slice_": CopySlice(),
    "count_true": CountTrue(),
    "cos": SavesInput(),
    "create": Create(),
    "cumsum": CumulativeSum(),
    "dequantize": Dequantize(),
    "dequantize4bit": Dequantize4bit(),
    "dequantize8bit": Dequantize8bit(),
    "div": Div(),
    "divide_": DivideInPlace(),
    "dropout": Dropout(),
    "efficient_attention": EfficientAttention(),
    "embedding": Embedding(),
    "expand": Expand(),
    "flash_attention": FlashAttention(),
    "flash_attn": FlashAttn(),
    "flash_attn_varlen": FlashAttnVarlen(),
    "gather": Gather(),
    "gelu": SavesInput(),
    "grouped_linear": GroupedLinear(),
    "index": Index(),
    "largest_in_group": LargestInGroup(),
    "layer_norm": LayerNorm(),
    "layers": Layers(),
    "linear": Linear(),
    "linear4bit": Linear4bit(),
    "linear8bit": Linear8bit(),
    "linear_awq": LinearAwq(),
    "log_softmax": LogSoftmax(),
    "masked_fill": MaskedFill(),
    "matmul": BatchedMatmul(),
    "max": MaxLast(),
    "reduce_all": ReduceAll(),
    "mean": MeanLast(),
    "mm": Mm(),
    "mul": Mul(),
    "mul_scalar": Unary(),
    "neg": Unary(),
    "new_leaf": NewLeaf(),
    "nll_loss": NllLoss(),
    "nonzero": Nonzero(),
    "pad": Pad(),
    "pow": Square(),
    "put_rows": PutRows(),
    "python_gelu": PythonGelu(),
    "recast": Recast(),
    "relu": SavesResult(),
    "row_norm": RowNorm(),
    "reshape": Reshape(),
    "rsqrt": Rsqrt(),
    "safe_softmax": SafeSoftmax(),
    "scan": Scan(),
    "select": Select(),
    "sigmoid": SavesResult(),
    "scale": Unary(),  # by a Scalar in C++, which is mul.Scalar to a selective checkpoint
    "silu": SavesInput(),
    "sin": SavesInput(),
    "slice": Slice(),
    "softmax": Softmax(),
    "stack": Stack(),
    "sort": Sort(),
    "split": Split(),
    "square": Square(),
    "tanh": SavesResult(),
    "sub": Sub(),
    "sum": Sum(),
    "topk": TopK(),
    "tril": Tril(),
    "transpose": Transpose(),
    "view": View(),
    "view_as_complex": ViewAsComplex(),
    "view_as_real": ViewAsReal(),
    "where_else": WhereElse(),
    "where": Where(),
}
