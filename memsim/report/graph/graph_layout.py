"""Where a layer graph's boxes and lines go: a row for each operator in the order of execution, lanes for what runs
beside each other.

Lines never pass behind a box: they leave a box at its bottom, run down a track in the gutter between two lanes, and
enter from above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.report.graph.graph_facts import is_view

# pixels: of a box, between two rows, around the drawing, for the names of modules
WIDTH, GAP, MARGIN, BAND = 226, 26, 14, 30
TRACK = 9  # between two tracks of a gutter
LEVEL = 4  # between two lines that enter one box
Height = Callable[[Operator], int]


@dataclass(frozen=True)
class Box:
    """A box of the drawing in pixels. `op` is None for an input, which `name` then names."""

    op: Operator | None
    name: str
    lane: int
    row: int
    x: float
    y: float
    width: int
    height: int


@dataclass(frozen=True)
class Line:
    """A storage on its way: from the box that makes it to one that reads or keeps it, by corner points."""

    source: int
    target: int
    kept: bool
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Drawing:
    """Boxes, lines, the (module, top, bottom) behind them, and the size of it all."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    bands: tuple[tuple[str, float, float], ...]
    width: float
    height: float


@dataclass
class _Place:
    op: Operator | None
    name: str
    lane: int
    row: int


def draw(graph: LayerGraph, height: Height, views: bool) -> Drawing:
    """The layer graph drawn with its views, or with its edges bridged over them. `height` gives a box's pixels."""
    places, edges = _lanes(graph, views)
    lanes = 1 + max(place.lane for place in places)
    tracks, gutters = _tracks(places, edges, lanes)
    left, x = [], float(BAND + MARGIN)
    for lane in range(lanes + 1):
        left.append(x + TRACK * (gutters[lane] + 1))
        x = left[-1] + WIDTH
    tall = _heights(places, height)
    top = [float(MARGIN)]
    for row_height in tall:
        top.append(top[-1] + row_height + GAP)
    boxes = tuple(
        Box(p.op, p.name, p.lane, p.row, left[p.lane], top[p.row], WIDTH, height(p.op) if p.op else tall[0])
        for p in places
    )
    lines = _lines(boxes, edges, tracks, left)
    return Drawing(boxes, lines, _bands(boxes), x - WIDTH + MARGIN, top[-1] - GAP + MARGIN)


def _lanes(graph: LayerGraph, views: bool) -> tuple[list[_Place], list[tuple[int, int, bool]]]:
    """Row and lane of every box; edges (source, target, whether the target keeps it)."""
    drawn = [op for op in graph.operators if views or not is_view(op)]
    hidden = [op for op in graph.operators if not views and is_view(op)]
    same = {
        out.value: spec.value
        for op in hidden
        for spec in op.inputs
        for out in op.outputs
        if spec.storage == out.storage
    }

    def origin(value: int) -> int:
        while value in same:
            value = same[value]
        return value

    ends = {origin(spec.value): row for row, op in enumerate(drawn, 1) for spec in op.inputs}
    places: list[_Place] = []
    edges: list[tuple[int, int, bool]] = []
    maker: dict[int, int] = {}
    end: dict[int, int] = {}  # lane → its last box
    busy: dict[int, int] = {}  # lane → row until which its last box is still read
    for name, spec in graph.inputs.items():
        if spec.value in ends:
            maker[spec.value] = len(places)
            if not places:
                end[0] = 0
            places.append(_Place(None, name, len(places), 0))
    for row, op in enumerate(drawn, 1):
        read = [(maker[origin(spec.value)], spec) for spec in op.inputs if origin(spec.value) in maker]
        sources = dict.fromkeys(source for source, _ in read)
        continued = sorted(places[s].lane for s in sources if end.get(places[s].lane) == s)
        free = next(lane for lane in range(len(busy) + 2) if busy.get(lane, 0) < row)
        lane = continued[0] if continued else free
        number = len(places)
        places.append(_Place(op, op.name, lane, row))
        edges += [(s, number, any(spec.storage in op.saved for source, spec in read if source == s)) for s in sources]
        for finished in continued[1:]:
            busy[finished] = row
        end[lane], busy[lane] = number, max([row, *(ends.get(out.value, row) for out in op.outputs)])
        maker |= {out.value: number for out in op.outputs}
    return places, edges


def _direct(places: Sequence[_Place], edge: tuple[int, int, bool]) -> bool:
    """Whether nothing stands between the two boxes of an edge, so that the line can go straight down."""
    a, b = places[edge[0]], places[edge[1]]
    return a.lane == b.lane and not any(p.lane == a.lane and a.row < p.row < b.row for p in places)


def _tracks(
    places: Sequence[_Place], edges: Sequence[tuple[int, int, bool]], lanes: int
) -> tuple[dict[int, tuple[int, int]], list[int]]:
    """(gutter, track) of every box with a line that is not direct, and how many tracks each gutter has. Gutter g is
    left of lane g.
    """
    targets: dict[int, list[int]] = {}
    for edge in edges:
        if not _direct(places, edge):
            targets.setdefault(edge[0], []).append(edge[1])
    # of each gutter: the row until which each of its tracks is taken
    taken: list[list[int]] = [[] for _ in range(lanes + 1)]
    found: dict[int, tuple[int, int]] = {}
    for source in sorted(targets, key=lambda s: (places[s].row, -max(places[t].row for t in targets[s]))):
        place, last = places[source], max(places[t].row for t in targets[source])
        gutter = place.lane + (any(places[t].lane > place.lane for t in targets[source]))
        rows = taken[gutter]
        track = next((i for i, until in enumerate(rows) if until <= place.row), len(rows))
        rows[track:] = [last, *rows[track + 1 :]]
        found[source] = gutter, track
    return found, [len(rows) for rows in taken]


def _heights(places: Sequence[_Place], height: Height) -> list[int]:
    tall = [0] * (1 + max(place.row for place in places))
    for place in places:
        tall[place.row] = max(tall[place.row], height(place.op) if place.op else 40)
    return tall


def _lines(
    boxes: Sequence[Box],
    edges: Sequence[tuple[int, int, bool]],
    tracks: dict[int, tuple[int, int]],
    left: Sequence[float],
) -> tuple[Line, ...]:
    places = [_Place(box.op, box.name, box.lane, box.row) for box in boxes]
    lines = []
    entering: dict[tuple[int, int], int] = {}  # lines that enter a box from its left (-1) or right (1) side so far
    for edge in edges:
        source, target, kept = edge
        a, b = boxes[source], boxes[target]
        out, into = a.x + a.width / 2, b.x + b.width / 2
        if _direct(places, edge):
            lines.append(Line(source, target, kept, ((out, a.y + a.height), (out, b.y))))
            continue
        gutter, track = tracks[source]
        x = left[gutter] - TRACK * (track + 1)
        side = -1 if x < into else 1
        count = entering[target, side] = entering.get((target, side), 0) + 1
        port = into + side * 14 * count
        above = b.y - 6 - LEVEL * count - (LEVEL / 2 if side > 0 else 0)
        below = above if b.row == a.row + 1 else a.y + a.height + 5
        lines.append(
            Line(
                source,
                target,
                kept,
                ((out, a.y + a.height), (out, below), (x, below), (x, above), (port, above), (port, b.y)),
            )
        )
    return tuple(lines)


def _bands(boxes: Sequence[Box]) -> tuple[tuple[str, float, float], ...]:
    """Runs of operators of one outermost module, in pixels from top to bottom."""
    bands: list[tuple[str, float, float]] = []
    for box in boxes:
        if box.op is None:
            continue
        module = box.op.name.split(".")[0] if "." in box.op.name else ""
        top, bottom = box.y - GAP / 2, box.y + box.height + GAP / 2
        if bands and bands[-1][0] == module:
            bands[-1] = module, bands[-1][1], bottom
        else:
            bands.append((module, top, bottom))
    return tuple(bands)
