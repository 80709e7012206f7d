"""The machine that operators run on: storages with reference counts, and the requests that follow from them, as from
PyTorch's tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memsim.graph.dtypes import ITEMSIZE
from memsim.graph.layer_graph import Operator
from memsim.graph.layout import contiguous, is_contiguous, like, view_strides
from memsim.machine.kernels import Platform
from memsim.machine.reductions import is_indexed, parts, reduction_scratch
from memsim.tape import Action, Category

NO_LAYER = -1
ALLOC, FREE, EMPTY_CACHE = int(Action.ALLOC), int(Action.FREE), int(Action.EMPTY_CACHE)
FORWARD, RECOMPUTED, BACKWARD, COPIED = range(4)


@dataclass(slots=True)
class Grad:
    """A gradient on its way through autograd: one reference to a storage, and its layout (strides in elements).

    A `view` keeps its base tensor alive, so autograd never accumulates into it in place. An `alone` gradient has no
    other holder, though its storage may have one.
    """

    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    view: bool = False
    alone: bool = False


class Machine:
    """Collects events. Every storage lives while something refers to it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.actions: list[int] = []
        self.events: list[int] = []  # the storage of each event
        self.marks: list[tuple[int, int, int, str]] = []  # (event, phase, layer, operator) from there on
        self.bytes: list[int] = []  # by storage, like the three below
        self.references: list[int] = []
        self.category: list[int] = []
        self.owner: list[int] = []  # the layer in which it was allocated
        self.phases: list[str] = []
        self.phase = 0
        self.layer = NO_LAYER
        self.default_category = int(Category.ACTIVATIONS)
        self.scratch_category = int(Category.SCRATCH)
        self.backward_thread = False  # autograd's own thread executes
        self.leftover: list[int] = []  # locals of a backward written in Python, which die after those that it unpacked
        self.workspaces: dict[tuple[str, bool], int] = {}  # cuBLAS workspaces that are kept, by thread
        # (event before which it is done, operator or bytes copied, FORWARD …)
        self.work: list[tuple[int, Operator | int, int]] = []

    # context

    def enter(self, phase: str) -> None:
        """Begins a phase: the events that follow belong to it."""
        if phase not in self.phases:
            self.phases.append(phase)
        self.phase = self.phases.index(phase)

    def at(self, operator: str) -> None:
        """Begins an operator: the events that follow belong to it."""
        self.marks.append((len(self.actions), self.phase, self.layer, operator))

    def worked(self, op: Operator, how: int) -> None:
        """Notes that an operator was executed: FORWARD, RECOMPUTED or BACKWARD."""
        self.work.append((len(self.actions), op, how))

    def copied(self, nbytes: int) -> None:
        """Notes that `nbytes` bytes travel between host and device while everything else waits."""
        self.work.append((len(self.actions), nbytes, COPIED))

    # storages

    def alloc(self, nbytes: int, category: int | None = None) -> int:
        """Makes a new storage of `nbytes` bytes, with one reference, and returns its number. 0 bytes
        make no request.
        """
        storage = len(self.bytes)
        self.bytes.append(nbytes)
        self.references.append(1)
        self.category.append(self.default_category if category is None else category)
        self.owner.append(self.layer)
        if nbytes:
            self.actions.append(ALLOC)
            self.events.append(storage)
        return storage

    def retain(self, storage: int) -> None:
        """Adds a reference."""
        self.references[storage] += 1

    def release(self, *storages: int) -> None:
        """Removes a reference from each, in order. The last one frees."""
        references = self.references
        for storage in storages:
            left = references[storage] = references[storage] - 1
            if left == 0 and self.bytes[storage]:
                self.actions.append(FREE)
                self.events.append(storage)

    def at_return(self, storage: int) -> None:
        """Notes a local of the running backward, a Python function. It dies after the tensors that the backward
        unpacked.
        """
        self.leftover.append(storage)

    def leave(self) -> None:
        """Returns from the running backward, and releases its locals."""
        self.release(*self.leftover)
        self.leftover.clear()

    def empty_cache(self) -> None:
        """Runs torch.cuda.empty_cache()."""
        self.actions.append(EMPTY_CACHE)
        self.events.append(-1)

    def scratch(self, *sizes: int) -> None:
        """Allocates temporaries of one operator in order, and frees them in reverse."""
        self.release(*reversed([self.alloc(size, self.scratch_category) for size in sizes]))

    # gradients

    def grad(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, view: bool = False, parameter: bool = False
    ) -> Grad:
        """Makes a new gradient tensor."""
        n = ITEMSIZE[dtype] * math.prod(shape)
        return Grad(
            self.alloc(n, int(Category.GRADIENTS) if parameter else self.scratch_category), shape, strides, dtype, view
        )

    def like(self, grad: Grad, dtype: str | None = None) -> Grad:
        """Makes a new tensor with the shape and the dimension order of another."""
        return self.grad(grad.shape, like(grad.shape, (grad.shape, grad.strides)), dtype or grad.dtype)

    def same(self, grad: Grad) -> Grad:
        """Returns the same tensor, passed on."""
        self.retain(grad.storage)
        return Grad(grad.storage, grad.shape, grad.strides, grad.dtype, grad.view)

    def view(self, grad: Grad, shape: tuple[int, ...], strides: tuple[int, ...]) -> Grad:
        """Returns a view of a gradient."""
        self.retain(grad.storage)
        return Grad(grad.storage, shape, strides, grad.dtype, view=True, alone=True)

    def reshape(self, grad: Grad, shape: tuple[int, ...]) -> Grad:
        """Runs grad.reshape(shape): a view where the layout allows one, otherwise a copy."""
        strides = view_strides(grad.shape, grad.strides, shape)
        if strides is not None:
            return self.view(grad, shape, strides)
        return self.grad(shape, contiguous(shape), grad.dtype)

    def contiguous(self, grad: Grad) -> Grad:
        """Runs grad.contiguous(): itself, or a copy."""
        return (
            self.same(grad)
            if is_contiguous(grad.shape, grad.strides)
            else self.grad(grad.shape, contiguous(grad.shape), grad.dtype)
        )

    def discard(self, *grads: Grad) -> None:
        """Releases temporaries, in order."""
        self.release(*(grad.storage for grad in grads))

    def sum_to(self, grad: Grad, shape: tuple[int, ...]) -> Grad:
        """Runs at::sum_to(grad, shape): reduces broadcast dimensions, and releases `grad`."""
        if grad.shape == shape:
            return grad
        lead = len(grad.shape) - len(shape)
        dims = (*range(lead), *(d for d in range(lead, len(grad.shape)) if shape[d - lead] == 1 and grad.shape[d] != 1))
        reduced = self.grad(shape, contiguous(shape), grad.dtype, view=lead > 0)
        self.reduction_scratch(grad.shape, grad.strides, dims, grad.dtype)
        self.release(grad.storage)
        return reduced

    def cast(self, grad: Grad, dtype: str) -> Grad:
        """Runs grad.to(dtype), and releases `grad` where it copies."""
        if grad.dtype == dtype:
            return grad
        result = self.like(grad, dtype)
        self.release(grad.storage)
        return result

    # scratch of the framework's libraries

    def workspace(self, lt: bool = False) -> None:
        """Requests the workspace of a matrix product: that of cuBLAS, or of cuBLASLt."""
        software, kept = self.platform.software, self.platform.software.keeps_cublas_workspaces
        own = (
            [self.alloc(self.platform.cublaslt_workspace, self.scratch_category)]
            if lt and not software.keeps_cublaslt_workspaces
            else []
        )
        if kept:  # cuBLASLt takes the handle of cuBLAS, which comes with its workspace
            self._keep("cublas", self.platform.cublas_workspace)
            if lt and software.keeps_cublaslt_workspaces:
                self._keep("cublaslt", self.platform.cublaslt_workspace)
        elif not lt:
            self.scratch(self.platform.cublas_workspace)
        self.release(*own)

    def _keep(self, library: str, nbytes: int) -> None:
        """Allocates the workspace that a library keeps for the running thread, if it is not there yet."""
        if (library, self.backward_thread) not in self.workspaces:
            layer, self.layer = self.layer, NO_LAYER
            self.workspaces[library, self.backward_thread] = self.alloc(nbytes, int(Category.SCRATCH))
            self.layer = layer

    def reduction_scratch(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dims: tuple[int, ...],
        dtype: str,
        accumulate: int = 4,
        out: str | None = None,
    ) -> None:
        """Requests the staging buffer and semaphores of a reduction that is split over thread blocks. `accumulate`:
        bytes of an accumulator.

        Where 32 bits do not index the reduction, it is divided into several. These add to each other in the result (of
        dtype `out`), or in a buffer where the result is as imprecise as the input (Reduce.cuh, gpu_reduce_kernel).
        """
        platform, itemsize = self.platform, ITEMSIZE[dtype]
        if is_indexed(shape, strides, itemsize):
            staging, semaphores = reduction_scratch(
                shape, strides, dims, itemsize, platform.processors, platform.threads_per_processor, accumulate
            )
            if staging:
                self.scratch(staging, semaphores)
            return
        imprecise = dtype in ("bf16", "fp16") and (out or dtype) == dtype
        buffer = (
            self.alloc(
                accumulate * math.prod(shape[d] for d in range(len(shape)) if d not in dims), self.scratch_category
            )
            if imprecise
            else -1
        )
        for reduced, kept in parts(shape, strides, dims, itemsize):
            sizes, steps = zip(*reduced, *kept, strict=True)
            over = tuple(range(len(reduced)))
            staging, semaphores = reduction_scratch(
                sizes, steps, over, itemsize, platform.processors, platform.threads_per_processor, accumulate
            )
            if staging:
                self.scratch(staging, semaphores)
        if buffer >= 0:
            self.release(buffer)

    def scan_scratch(self, shape: tuple[int, ...], itemsize: int = 8) -> None:
        """Requests the scratch of CUB's scan over a tensor that is one row. Several rows are scanned
        without scratch.
        """
        if math.prod(shape) == shape[-1]:
            self.scratch(
                self.platform.scan_bytes(shape[-1]) if itemsize == 8 else self.platform.short_scan_bytes(shape[-1])
            )
