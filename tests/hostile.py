"""Hostile files, made by hand and by chance; shared by the tests and by benchmarks/fuzz_inputs.py."""

from __future__ import annotations

import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MIB = 1 << 20
EXTREMES = (0, 1, -1, 255, 2**31, 2**53, 2**58, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)
ODD = (
    "",
    "\x1b[2J",
    "=1+1",
    "ä" * 50,
    "a" * 5000,
    None,
    True,
    1.5,
    float("inf"),
    float("nan"),
    [],
    {},
    [[1]],
    {"a": 1},
)


def event(action: str, address: int = 512, size: int = 512, stream: int = 0, **more: object) -> dict[str, object]:
    """An event of a snapshot."""
    return {"action": action, "addr": address, "size": size, "stream": stream, "frames": [], **more}


def segment(address: int = 1 << 40, size: int = 2 * MIB, kind: str = "small", **more: object) -> dict[str, object]:
    """A segment of a snapshot."""
    return {
        "device": 0,
        "address": address,
        "total_size": size,
        "stream": 0,
        "segment_type": kind,
        "blocks": [],
        **more,
    }


def snapshot(events: list[object], segments: list[object] | None = None, settings: object = None) -> bytes:
    """A snapshot as PyTorch pickles it."""
    data = {"segments": segments or [], "device_traces": [events], "allocator_settings": settings or {}}
    return pickle.dumps(data, protocol=4)


def plain_snapshot() -> dict[str, object]:
    """A small snapshot that is right."""
    events = [event("segment_alloc", 1 << 40, 2 * MIB)]
    for number in range(6):
        events += [event("alloc", (1 << 40) + 512 * number)]
    events += [event("free_requested", 1 << 40), event("free_completed", 1 << 40), event("snapshot", 0, 0)]
    blocks = [
        {"size": 512, "state": "active_allocated" if at else "inactive", "requested_size": 512} for at in range(6)
    ]
    frames = [{"name": "f", "filename": "a.py", "line": 3}]
    blocks += [{"size": 2 * MIB - 6 * 512, "state": "inactive", "requested_size": 0, "frames": frames}]
    return {
        "segments": [segment(blocks=blocks), segment(1 << 41, 20 * MIB, "large", is_expandable=True)],
        "device_traces": [events, []],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
    }


def operations() -> dict[str, np.ndarray]:
    """A small operation list that is right."""
    rows = [[0, at, 700 * at + 1, 0] for at in range(20)] + [[1, at, 0, 0] for at in range(0, 20, 2)] + [[2, 0, 0, 0]]
    return {"ops": np.array(rows), "settings": np.array("max_split_size_mb:64"), "device_memory": np.array(80 << 30)}


def recording() -> dict[str, np.ndarray]:
    """A small recording that is right."""
    return {
        "action": np.array([0, 0, 1, 2], np.uint8),
        "address": np.array([512, 1024, 512, 512]),
        "bytes": np.array([512, 512, 512, 512]),
        "stream": np.zeros(4, np.uint64),
        "phase": np.zeros(4, np.int32),
        "actions": np.array(["alloc", "free_requested", "free_completed"]),
        "phases": np.array(["step"]),
    }


def chrome() -> dict[str, object]:
    """A small trace of the profiler that is right."""
    return {
        "traceEvents": [
            {
                "name": "[memory]",
                "ts": 10.0 + at,
                "args": {
                    "Device Type": 1,
                    "Device Id": 0,
                    "Addr": 512 * at,
                    "Bytes": 512,
                    "Total Allocated": 512 * at,
                    "Total Reserved": 2 * MIB,
                },
            }
            for at in range(1, 6)
        ]
    }


def npz(arrays: dict[str, np.ndarray], packed: bool = False) -> bytes:
    """The arrays as a file."""
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    """A zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def flipped(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(changed)) if changed else 0
        kind = dice.randrange(4)
        if kind == 0 and changed:
            changed[at] = dice.randrange(256)
        elif kind == 1:
            del changed[at : at + dice.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = changed[at : at + dice.randint(1, 64)] * dice.randint(1, 20)
        elif dice.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def mutated(value: object, dice: random.Random, share: float = 0.02) -> object:
    """Plain data with some values replaced, left out, doubled or shared."""
    if dice.random() < share:
        return dice.choice([*EXTREMES, *ODD])
    if isinstance(value, dict):
        return {
            (key if dice.random() > share / 4 else "x"): mutated(inner, dice, share)
            for key, inner in value.items()
            if dice.random() > share / 2
        }
    if isinstance(value, list):
        made = [mutated(inner, dice, share) for inner in value if dice.random() > share / 2]
        return made * dice.choice((2, 50)) if dice.random() < share else made
    return value


def mutated_arrays(arrays: dict[str, np.ndarray], dice: random.Random) -> dict[str, np.ndarray]:
    """Arrays with some replaced: other types, shapes and extreme numbers."""
    made = {}
    for name, array in arrays.items():
        chance = dice.random()
        if chance < 0.03:
            continue
        if chance < 0.15 and array.dtype.kind in "iu" and array.size:
            array = array.astype(dice.choice((np.int64, np.uint64)))
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                fits = [
                    number for number in EXTREMES if np.iinfo(array.dtype).min <= number <= np.iinfo(array.dtype).max
                ]
                array.flat[dice.randrange(array.size)] = dice.choice(fits)
        elif chance < 0.2:
            array = (
                array.astype(dice.choice(("U8", "f8", "?", "S3")))
                if array.dtype.kind != "U"
                else np.array(["\x1b", "a"])
            )
        elif chance < 0.25:
            array = dice.choice((array[:0] if array.ndim else array, array.reshape(-1), array[None], array.T))
        made[name] = array
    return made


RUN = """\
model: {model_type: llama, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4,
  num_key_value_heads: 2, vocab_size: 1000}
method: {kind: lora, rank: 8, targets: [q_proj, v_proj]}
batch: {size: 1, sequence: 64, accumulation: 1}
checkpointing: full
optimizer: adamw
allocator: "expandable_segments:True"
device_memory_gib: 4
steps: 1
"""


def kinds() -> dict[str, tuple[str, Callable[[random.Random], bytes]]]:
    """What to fuzz: the name of a kind of file → its suffix, and what makes one."""

    def dumped(dice: random.Random) -> bytes:
        return pickle.dumps(mutated(plain_snapshot(), dice), protocol=dice.randrange(6))

    return {
        "snapshot, other values": (".pickle", dumped),
        "snapshot, other bytes": (".pickle", lambda dice: flipped(pickle.dumps(plain_snapshot()), dice)),
        "operations, other values": (".npz", lambda dice: npz(mutated_arrays(operations(), dice))),
        "operations, other bytes": (".npz", lambda dice: flipped(npz(operations(), dice.random() < 0.5), dice)),
        "recording, other values": (".npz", lambda dice: npz(mutated_arrays(recording(), dice))),
        "recording, other bytes": (".npz", lambda dice: flipped(npz(recording(), dice.random() < 0.5), dice)),
        "profile, other values": (".json", lambda dice: json.dumps(mutated(chrome(), dice)).encode()),
        "profile, other bytes": (".json", lambda dice: flipped(json.dumps(chrome()).encode(), dice)),
        "run, other bytes": (".yaml", lambda dice: flipped(RUN.encode(), dice)),
    }


def files(seed: int, only: str = "") -> Iterator[tuple[str, str, bytes]]:
    """Endless (kind, suffix, contents), the same for the same seed."""
    dice = random.Random(seed)
    makers = {name: made for name, made in kinds().items() if only in name}
    while True:
        for name, (suffix, make) in makers.items():
            yield name, suffix, make(dice)


def write(folder: Path, suffix: str, data: bytes) -> Path:
    """The file with these contents."""
    path = folder / f"x{suffix}"
    path.write_bytes(data)
    return path
