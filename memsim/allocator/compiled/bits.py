"""What numba has no name for: how many zeros a word begins and ends with, and an array's items by their address.

An array that is passed from function to function is counted, and its indices are checked for their sign, at every step.
The allocator's steps are a few instructions each, so inside it is handed on as the bare address of its items. Whoever
takes the address keeps the array.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ZERO_IS_DEFINED = ir.Constant(ir.IntType(1), 0)


@intrinsic
def leading_zeros(typing_context, word):
    """Zero bits above the highest set bit of an int64; 64 for 0."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.ctlz(
        arguments[0], _ZERO_IS_DEFINED
    )


@intrinsic
def trailing_zeros(typing_context, word):
    """Zero bits below the lowest set bit of an int64; 64 for 0."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.cttz(
        arguments[0], _ZERO_IS_DEFINED
    )


@intrinsic
def items(typing_context, array):
    """The items of a contiguous array by their address: indexed as the array is, by indices that must be in it."""

    def address(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), address
