"""Tapes written by hand, and small random ones that free only what is alive."""

from __future__ import annotations

import numpy as np

from memsim.tape import Action, Category, Tape

MIB = 2**20


class Writer:
    """Writes a Tape event by event: alloc() gives the storage's number, free() takes it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, str, str, int, int]] = []
        self.sizes: list[tuple[int, Category]] = []
        self.at = ("load", "build", -1)

    def enter(self, phase: str, operator: str = "op", layer: int = -1) -> None:
        """Names the place of the events that follow."""
        self.at = (phase, operator, layer)

    def alloc(self, count: int, category: Category = Category.UNATTRIBUTED, stream: int = 0) -> int:
        """Allocates `count` bytes."""
        self.sizes.append((count, category))
        self._write(Action.ALLOC, len(self.sizes) - 1, count, stream, category)
        return len(self.sizes) - 1

    def free(self, storage: int) -> None:
        """Frees a storage."""
        count, category = self.sizes[storage]
        self._write(Action.FREE, storage, count, 0, category)

    def record_stream(self, storage: int, stream: int) -> None:
        """Uses a storage on another stream."""
        self._write(Action.RECORD_STREAM, storage, 0, stream, self.sizes[storage][1])

    def _write(self, action: Action, storage: int, count: int, stream: int, category: Category) -> None:
        phase, operator, layer = self.at
        self.rows.append((action, storage, count, stream, phase, operator, layer, category))

    def tape(self) -> Tape:
        """What was written."""
        phases = tuple(dict.fromkeys(row[4] for row in self.rows)) or ("load",)
        operators = tuple(dict.fromkeys(row[5] for row in self.rows)) or ("build",)
        column = list(zip(*self.rows, strict=True)) if self.rows else [()] * 8
        return Tape(
            action=np.array(column[0], np.uint8),
            storage=np.array(column[1], np.int64),
            bytes=np.array(column[2], np.int64),
            stream=np.array(column[3], np.int64),
            phase=np.array([phases.index(name) for name in column[4]], np.int32),
            operator=np.array([operators.index(name) for name in column[5]], np.int32),
            layer=np.array(column[6], np.int32),
            category=np.array(column[7], np.uint8),
            phases=phases,
            operators=operators,
        )


def training(steps: int = 2, layers: int = 3, accumulation: int = 1) -> Tape:
    """A toy training job: weights, activations by layer, gradients, logits, optimizer state from step 0 on."""
    write = Writer()
    write.enter("load", "weight")
    write.alloc(5 * MIB + 1000, Category.WEIGHTS)
    for layer in range(layers):
        write.enter("load", "proj.weight", layer)
        write.alloc(3 * MIB + 8, Category.WEIGHTS)
    for step in range(steps):
        gradients: list[int] = []
        for _ in range(accumulation):
            saved = []
            for layer in range(layers):
                write.enter(f"{step}/forward", "proj", layer)
                saved.append(write.alloc(2 * MIB + 77, Category.ACTIVATIONS))
                write.free(write.alloc(11 * MIB, Category.SCRATCH))
            write.enter(f"{step}/forward", "lm_head")
            logits = write.alloc(16 * MIB + 3, Category.LOGITS_AND_LOSS)
            write.enter(f"{step}/backward", "lm_head.backward")
            write.free(write.alloc(16 * MIB + 3, Category.SCRATCH))
            write.free(logits)
            fresh = not gradients
            for layer in reversed(range(layers)):
                write.enter(f"{step}/backward", "proj.backward", layer)
                if fresh:
                    gradients.append(write.alloc(3 * MIB + 8, Category.GRADIENTS))
                write.free(saved[layer])
        write.enter(f"{step}/optimizer", "adamw")
        if step == 0:
            for _ in range(layers):
                write.alloc(6 * MIB + 16, Category.OPTIMIZER_STATE)
        for gradient in gradients:
            write.free(gradient)
    return write.tape()


def random_tape(seed: int, events: int = 200) -> Tape:
    """Allocations of all sizes and frees of what is alive, in a random order."""
    rng, write, alive = np.random.default_rng(seed), Writer(), list[int]()
    for event in range(events):
        write.enter(f"{event // 100}/forward", f"op{rng.integers(4)}", int(rng.integers(-1, 3)))
        if alive and rng.random() < 0.45:
            write.free(alive.pop(int(rng.integers(len(alive)))))
        else:
            alive.append(write.alloc(int(2 ** rng.uniform(0, 25)), Category(int(rng.integers(0, 9)))))
    return write.tape()
