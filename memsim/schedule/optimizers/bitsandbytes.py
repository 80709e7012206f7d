"""State of bitsandbytes' optimizers (bitsandbytes/optim/optimizer.py, ademamix.py). Their steps are kernels in place,
without temporaries.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsim.framework.model import Model, Parameter

LEAST_8BIT = 4096  # elements; smaller parameters keep fp32 state (min_8bit_size)
LEAST_PAGED = 100_000  # elements, from which on paged optimizers page (get_state_buffer)
BLOCK = 256  # elements of 8-bit state that share an fp32 maximum
CODE_BOOK = 1024  # bytes of a quantization map: 256 fp32 values


@dataclass(frozen=True)
class StateBuffers:
    """The tensors that an optimizer keeps of each parameter: tensors of its size, stacked in buffers."""

    stacked: tuple[int, ...]  # number of tensors in each buffer
    eight: bool = False  # 8-bit where the parameter is large enough
    paged: bool = False  # managed memory, not the allocator's, where it is large enough
    maxima_first: bool = False  # AdEMAMix makes the maxima of its blocks before the state

    def quantizes(self, p: Parameter) -> bool:
        """True if a parameter's state is 8-bit."""
        return self.eight and p.elements >= LEAST_8BIT

    def pages(self, p: Parameter) -> bool:
        """True if a parameter's state is managed memory of the host."""
        return self.paged and p.elements >= LEAST_PAGED

    def paged_bytes(self, p: Parameter) -> int:
        """Bytes of a parameter's state that are managed memory."""
        return sum(self._state(p)) if self.pages(p) else 0

    def _state(self, p: Parameter) -> list[int]:
        item = 1 if self.quantizes(p) else 4
        return [item * count * p.elements for count in self.stacked]

    def sizes(self, p: Parameter) -> list[int]:
        """Bytes of each tensor on the device, in order."""
        eight = self.quantizes(p)
        state = [] if self.pages(p) else self._state(p)
        maxima = [4 * count * -(-p.elements // BLOCK) for count in self.stacked] if eight else []
        return maxima + state if self.maxima_first else state + maxima


ONE, TWO, MIXED = (1,), (1, 1), (2, 1)  # Optimizer1State; Optimizer2State; AdEMAMix, whose two averages share a buffer
BUFFERS = {
    "adamw-32bit": StateBuffers(TWO),
    "adamw-8bit": StateBuffers(TWO, eight=True),
    "paged-adamw-8bit": StateBuffers(TWO, eight=True, paged=True),
    "paged-adamw": StateBuffers(TWO, paged=True),
    "adam-8bit": StateBuffers(TWO, eight=True),
    "paged-adam-8bit": StateBuffers(TWO, eight=True, paged=True),
    "paged-adam": StateBuffers(TWO, paged=True),
    "lion": StateBuffers(ONE),
    "lion-8bit": StateBuffers(ONE, eight=True),
    "paged-lion": StateBuffers(ONE, paged=True),
    "paged-lion-8bit": StateBuffers(ONE, eight=True, paged=True),
    "ademamix": StateBuffers(MIXED, maxima_first=True),
    "ademamix-8bit": StateBuffers(MIXED, eight=True, maxima_first=True),
    "paged-ademamix": StateBuffers(MIXED, paged=True, maxima_first=True),
    "paged-ademamix-8bit": StateBuffers(MIXED, eight=True, paged=True, maxima_first=True),
    "sgd-8bit": StateBuffers(ONE, eight=True),
    "rmsprop-8bit": StateBuffers(ONE, eight=True),
    "rmsprop-32bit": StateBuffers(ONE),
    "adagrad-8bit": StateBuffers(ONE, eight=True),
}
# optimizers whose fp32 state has kernels for fp32 and fp16 gradients only (backends/cuda/ops.py)
NO_BF16 = ("sgd-8bit", "rmsprop-8bit", "rmsprop-32bit", "adagrad-8bit")


def lacks_kernel(name: str, p: Parameter) -> bool:
    """True if an optimizer raises an error over a parameter."""
    return name in NO_BF16 and p.dtype == "bf16" and not BUFFERS[name].quantizes(p)


def paged_state(name: str, model: Model) -> int:
    """Bytes of optimizer state that a paged optimizer keeps in managed memory, which lies on the host until its kernels
    want it. 0 for any other optimizer.
    """
    buffers = BUFFERS.get(name)
    if buffers is None or not buffers.paged:
        return 0
    return sum(buffers.paged_bytes(p) for _, p in model.in_order() if p.trainable and not p.buffer)
