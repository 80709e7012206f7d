"""The exact Timeline as the page carries it: columns of numbers, compressed, from which the page rebuilds every curve
and every moment.

Nothing is sampled here. The page samples what it draws, anew for each zoom, so that a peak can neither vanish nor be
invented.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memsim.allocator.answer import DriverAction
from memsim.tape import SECONDS
from memsim.timeline.curves import Curves

LEVEL = 6  # of zlib: a higher one saves little and takes much longer
UNKNOWN = 2
NOTHING, ALLOC = -2, -1  # what an event may be in `code`, beside the free of a storage


def columns(timeline: Curves) -> dict[str, NDArray[Any]]:
    """The columns. Storages are numbered by the order in which they were served.

    code [n]           ALLOC: the next storage; NOTHING; else a FREE: how many storages ago the one that it frees was
    allocated
    operator, layer [n] of each event
    stack [n]          index into the page's stacks, -1 for none; only of recordings with stack frames
    seconds [n]        estimated, before each event; only where something is known of time
    kind [s]           index into kind_* of each storage
    address [s]        of its block
    kind_bytes, kind_block, kind_category [k]
    late_storage, late_event    storages whose block stayed in use after their free, and until which event
    driver_event, driver_sign, driver_whole, driver_address, driver_bytes [m]   +1 where memory came, -1 where it went;
    whole: a segment (1),
                       pages (0), or memory of which no address is known (UNKNOWN)
    """
    tape, answer, lives = timeline.tape, timeline.whole, timeline.lifetimes
    n = answer.processed
    served = np.flatnonzero(lives.born < n)
    served = served[np.argsort(lives.born[served], kind="stable")]
    number = np.full(tape.storages, -1, np.int64)
    number[served] = np.arange(len(served))
    code = np.full(n, NOTHING, np.int64)
    code[lives.born[served]] = ALLOC
    freed = served[lives.died[served] < n]
    at = lives.died[freed]
    code[at] = np.cumsum(code == ALLOC)[at] - 1 - number[freed]
    late = served[(lives.released[served] > lives.died[served])]
    # (bytes, block, category) repeat a great deal: number the combinations that occur.
    _, size = np.unique(lives.bytes[served], return_inverse=True)
    blocks, block = np.unique(lives.block[served], return_inverse=True)
    combined = (size * max(len(blocks), 1) + block) * 256 + lives.category[served]
    kinds, first, kind = np.unique(combined, return_index=True, return_inverse=True)
    arrived = np.isin(answer.driver_action, (DriverAction.SEGMENT_ALLOC, DriverAction.SEGMENT_MAP))
    whole = np.isin(answer.driver_action, (DriverAction.SEGMENT_ALLOC, DriverAction.SEGMENT_FREE))
    calls = {
        "driver_event": answer.driver_event.astype(np.int32),
        "driver_sign": np.where(arrived, 1, -1).astype(np.int8),
        "driver_whole": whole.astype(np.uint8),
        "driver_address": answer.driver_address.astype(np.float64),
        "driver_bytes": answer.driver_bytes.astype(np.float64),
    }
    return {
        "code": code.astype(np.int32),
        "operator": tape.operator[:n].astype(np.uint16 if len(tape.operators) < 2**16 else np.int32),
        "layer": tape.layer[:n].astype(np.int16),
        "kind": kind.astype(np.uint16 if len(kinds) < 2**16 else np.int32),
        "address": lives.address[served].astype(np.float64),  # whole numbers below 2**53, so exact
        "kind_bytes": lives.bytes[served][first].astype(np.float64),
        "kind_block": lives.block[served][first].astype(np.float64),
        "kind_category": lives.category[served][first].astype(np.uint8),
        "late_storage": number[late].astype(np.int32),
        "late_event": lives.released[late].astype(np.int32),
        **({} if tape.calls is None else {"stack": tape.calls.stack[:n].astype(np.int32)}),
        **({} if tape.work is None else {"seconds": tape.work[:n, SECONDS].astype(np.float32)}),
        **(calls if len(answer.driver_event) else _totals(answer.reserved[:n])),
    }


def _totals(reserved: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """As if the driver had been called at each change of what is reserved, where a recording has totals only."""
    change = np.diff(reserved, prepend=0)
    at = np.flatnonzero(change)
    return {
        "driver_event": at.astype(np.int32),
        "driver_sign": np.sign(change[at]).astype(np.int8),
        "driver_whole": np.full(len(at), UNKNOWN, np.uint8),
        "driver_address": np.zeros(len(at)),
        "driver_bytes": np.abs(change[at]).astype(np.float64),
    }


def pack(arrays: dict[str, NDArray[Any]]) -> str:
    """Columns as base64 of gzip of: uint32 length of a JSON header, the header, the arrays, each at a multiple of 8
    bytes, little-endian.
    """
    header: list[dict[str, Any]] = []
    offset, parts = 0, []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header.append({"name": name, "type": array.dtype.name, "length": len(array), "offset": offset})
        padded = data + b"\0" * (-len(data) % 8)
        offset += len(padded)
        parts.append(padded)
    head = json.dumps(header).encode()
    head += b" " * (-(len(head) + 4) % 8)
    return compressed(len(head).to_bytes(4, "little") + head + b"".join(parts))


def compressed(data: bytes) -> str:
    """Base64 of gzip, as DecompressionStream reads it."""
    # 31: with a gzip header, without a time stamp, so that equal runs give equal files
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode()
