"""The page of `memsim graph`: the operators of a decoder layer in the order of execution, with what each allocates and
keeps for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from memsim.framework.model import Model
from memsim.graph.layer_graph import LayerGraph, Operator
from memsim.report.graph.graph_facts import (
    HIDDEN,
    Facts,
    details,
    facts,
    flop_words,
    kept,
    kept_by_layers,
    layout,
    of_all_layers,
    storage_names,
)
from memsim.report.graph.graph_layout import Box, Drawing, Line, draw
from memsim.report.page import ASSETS, render, write
from memsim.units import size
from memsim.version import version

DECODER, ENCODER = "decoder layer", "encoder layer"
LETTERS = 30  # that fit a box's first line
COLOURS = (
    ("keeps", "bytes it keeps for backward"),
    ("allocates", "bytes it allocates"),
    ("parameters", "bytes of its parameters"),
)


@dataclass(frozen=True)
class Section:
    """One block of the model as the page shows it."""

    key: str
    title: str
    words: str  # a sentence, as HTML
    graph: LayerGraph
    rows: tuple[Facts, ...]
    saved: frozenset[int]  # storages that backward keeps, whoever saves them
    layers: str = ""  # what the operator "layers" keeps, in words


def write_graph_html(model: Model, path: str | Path, name: str = "") -> None:
    """Writes the graphs of every distinct kind of layer, and of what surrounds the layers; one file, without network
    requests.

    name: the model's, for the title. Raises InputError where the path cannot be written.
    """
    write(graph_html(model, name), Path(path))


def graph_html(model: Model, name: str = "") -> str:
    """The page of a Model."""
    sections = _sections(model)
    jump = "".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in sections)
    return render(
        kind="layer graph",
        title=" ".join(filter(None, ("memsim graph", name))),
        main=f"<style>{(ASSETS / 'graph.css').read_text(encoding='utf-8')}</style><h1>{_headline(model, name)}</h1>"
        f'<p class="lead">{_lead(model)}</p>'
        f'<nav aria-label="Parts of this page"><ul class="jump">{jump}</ul></nav>'
        f'{"".join(map(_section, sections))}<div id="card" role="tooltip" hidden></div>',
        footer=f"memsim {escape(version())}. One file, complete in itself: it makes no network request.",
        script=("page.js", "graph.js"),
        start="graphs()",
        data={},
        meta={part.key: _cards(part) for part in sections},
    )


def _layer(model: Model, article: str = "") -> str:
    """What a layer is called: a decoder's, an encoder's, or of either."""
    if model.towers:
        return f"{article} layer".strip()
    encodes = all(graph.name == ENCODER for graph in model.layer_graphs)
    return f"{article}{'n' if encodes and article else ''} {ENCODER if encodes else DECODER}".strip()


def _headline(model: Model, name: str) -> str:
    keeps = _either(size(kept(graph)) for graph in model.layer_graphs)
    of = f" of {escape(name)}" if name else ""
    if not model.checkpointed:
        return f"{_layer(model, 'a').capitalize()}{of} keeps {keeps} for its backward"
    inputs = _either(size(graph.inputs[HIDDEN].nbytes) for graph in model.layer_graphs)
    return f"Checkpointed, {_layer(model, 'a')}{of} keeps {inputs}; run again for its backward, {keeps}"


def _either(words: Iterable[str]) -> str:
    """Each of them once: "a, b or c"."""
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _lead(model: Model) -> str:
    settings, total = model.settings, of_all_layers(model)
    layers = f"{len(model.pattern)} layers" if len(model.pattern) != 1 else "the one layer"
    words = (
        f"{settings.batch} × {settings.sequence} tokens, weights in {escape(settings.dtype)}, attention "
        f"{escape(settings.attention)}. "
    )
    if not model.checkpointed:
        return words + f"The {layers} together keep <b>{size(total)}</b> from forward until their backward."
    inputs = sum(model.layer_graphs[kind].inputs[HIDDEN].nbytes for kind in model.pattern)
    return words + (
        f"Every layer is checkpointed: from forward until backward the {layers} keep only their inputs, "
        f"<b>{size(inputs)}</b> instead of {size(total)}; "
        "what is drawn here comes back, a layer at a time, when backward runs the layer again."
    )


def _sections(model: Model) -> list[Section]:
    found = []
    for i, graph in enumerate(model.layer_graphs):
        count = model.pattern.count(i)
        which = _layer(model).capitalize() + (f", kind {i + 1}" if len(model.layer_graphs) > 1 else "")
        which = graph.name.capitalize() if model.towers else which
        same = f"{count} layers are like this one. " if count > 1 else ""
        own = graph.inputs[HIDDEN]
        words = (
            f"{same}Each takes the hidden states, {own.dtype} {list(own.shape)}, {size(own.nbytes)}, and hands on "
            "as much."
        )
        saved = frozenset(storage for op in graph.operators for storage in op.saved)
        found.append(Section(f"layer-{i + 1}", which, words, graph, facts(graph), saved))
    outer = model.outer
    saved = kept_by_layers(model) | {storage for op in outer.operators for storage in op.saved}
    inputs = sum(model.layer_graphs[kind].inputs[HIDDEN].nbytes for kind in model.pattern)
    within = f"all {len(model.pattern)} keep {size(inputs if model.checkpointed else of_all_layers(model))}"
    what = (
        "Embedding, rotary tables, final norm, head and loss"
        if _layer(model) == DECODER
        else ("Embeddings, norms, head and loss")
    )
    boxes = "The layers of encoder and decoder are a box each" if model.towers else f"The {_layer(model)}s are one box"
    words = f"{what}. {boxes} here; what they keep is not in this part's sums."
    found.append(
        Section("outer", "Around the layers: embedding, head and loss", words, outer, facts(outer), saved, within)
    )
    return found


def _section(part: Section) -> str:
    title = escape(part.title)
    own, views = [row for row in part.rows if not row.view], sum(row.view for row in part.rows)
    whole = size(sum(spec.nbytes for spec in part.graph.parameters.values()))
    tiles = (
        ("kept for backward", size(kept(part.graph)), "each storage once, without parameters and shared inputs"),
        (
            "allocated in forward",
            size(sum(row.allocates for row in own)),
            "all results; what is not kept is freed again",
        ),
        (
            "parameters",
            whole,
            "with adapters"
            if any(".lora_" in name for name in part.graph.parameters)
            else "read by the operators below",
        ),
        ("forward", flop_words(sum(row.flops for row in part.rows)), f"in {len(own)} operators, {views} views aside"),
    )
    shown = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}<div class="tile-note">{note}</div></dd></div>'
        for name, value, note in tiles
    )
    options = "".join(f'<option value="{key}">{words}</option>' for key, words in COLOURS)
    drawings = "".join(_drawing(part, views) for views in (False, True))
    return (
        f'<section id="{part.key}" aria-labelledby="{part.key}-title"><h2 id="{part.key}-title">{title}</h2>'
        f'<p class="sub">{part.words}</p>'
        f'<dl class="tiles">{shown}</dl>'
        f'<div class="controls"><label>Colour by <select class="by">{options}</select></label>'
        f'<label><input type="checkbox" class="views"> Show {views} views</label></div>'
        '<ul class="legend"><li><b>+</b>&nbsp;bytes that it allocates</li><li><span class="swatch scale">'
        "</span>the stronger, the more bytes</li>"
        '<li><span class="swatch line kept"></span>read, and kept for backward</li><li><span class="swatch line read">'
        "</span>only read</li></ul>"
        f'<div class="graph" data-by="keeps" tabindex="-1" role="group" aria-label="{title}, drawn. Arrow keys go '
        'from operator to operator.">'
        f"{drawings}</div>"
        f"{_table(part)}</section>"
    )


def _cards(part: Section) -> dict[str, list[tuple[str, list[str]]]]:
    """What the card of each box says, by the box's key."""
    names = storage_names(part.graph)
    cards = {str(row.op.index): details(part.graph, row, names, part.saved) for row in part.rows}
    for name, spec in part.graph.inputs.items():
        cards[name] = [("comes from outside", [f"{layout(spec)}, {size(spec.nbytes)}"])]
    for row in part.rows:
        if row.op.kind == "layers":
            cards[str(row.op.index)].append(("keeps for backward", [part.layers]))
    return {_title(part, key): lines for key, lines in cards.items()}


def _title(part: Section, key: str) -> str:
    """The key of a card with its heading: "8 self_attn.q_proj.linear"."""
    return f"{key} {part.graph.operators[int(key)].name}" if key.isdigit() else f"{key} input of this part"


def _drawing(part: Section, views: bool) -> str:
    rows = {row.op.index: row for row in part.rows}

    def height(op: Operator) -> int:
        row = rows[op.index]
        return 24 if row.view else 60 if row.parameters else 42

    picture = draw(part.graph, height, views)
    largest = {key: max((getattr(row, key) for row in part.rows), default=0) for key, _ in COLOURS}
    parts = [
        f'<svg class="{"with-views" if views else "without-views"}" width="{picture.width:g}" '
        f'height="{picture.height:g}" '
        f'viewBox="0 0 {picture.width:g} {picture.height:g}" xmlns="http://www.w3.org/2000/svg">',
        *(_band(name, top, bottom, picture, i) for i, (name, top, bottom) in enumerate(picture.bands)),
        *(_line(line, picture.boxes) for line in sorted(picture.lines, key=lambda line: line.kept)),
    ]
    first = True
    for box in picture.boxes:
        parts.append(_box(part, box, None if box.op is None else rows[box.op.index], largest, first))
        first = False
    return "".join([*parts, "</svg>"])


def _band(name: str, top: float, bottom: float, picture: Drawing, number: int) -> str:
    repeats = max(1, int((bottom - top) // 620))
    words = ""
    if name:
        at = [top + 12 + (bottom - top) * i / repeats for i in range(repeats)]
        words = "".join(
            f'<text class="module" transform="translate(11 {y:g}) rotate(90)">{escape(name)}</text>' for y in at
        )
    return (
        f'<rect class="band{" odd" if number % 2 else ""}" x="0" y="{top:g}" width="{picture.width:g}" '
        f'height="{bottom - top:g}"/>{words}'
    )


def _line(line: Line, boxes: Sequence[Box]) -> str:
    style = "edge kept" if line.kept else "edge"
    (x, y), head = line.points[-1], 5
    path = _rounded(line.points)
    tip = f"M{x - 3.5:g} {y - head:g}L{x:g} {y:g}L{x + 3.5:g} {y - head:g}"
    return (
        f'<path class="{style}" data-from="{_key(boxes[line.source])}" data-to="{_key(boxes[line.target])}" '
        f'd="{path}{tip}"/>'
    )


def _rounded(points: Sequence[tuple[float, float]], radius: float = 4) -> str:
    """A path through corner points with rounded corners."""
    path = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for (x0, y0), (x, y), (x1, y1) in zip(points, points[1:], points[2:], strict=False):
        before, after = math.hypot(x - x0, y - y0), math.hypot(x1 - x, y1 - y)
        r = min(radius, before / 2, after / 2)
        if r == 0:
            continue
        path.append(
            f"L{x - (x - x0) / before * r:g} {y - (y - y0) / before * r:g}Q{x:g} {y:g} {x + (x1 - x) / after * r:g} "
            f"{y + (y1 - y) / after * r:g}"
        )
    return "".join([*path, f"L{points[-1][0]:g} {points[-1][1]:g}"])


def _key(box: Box) -> str:
    return box.name if box.op is None else str(box.op.index)


def _box(part: Section, box: Box, row: Facts | None, largest: dict[str, int], first: bool) -> str:
    key = _key(box)
    tab = f'tabindex="{0 if first else -1}" role="img" data-key="{escape(_title(part, key))}"'
    x, y, w, h = box.x, box.y, box.width, box.height
    frame = f'x="{x:g}" y="{y:g}" width="{w}" height="{h}" rx="6"'
    if row is None:
        amount = size(part.graph.inputs[box.name].nbytes)
        texts = (
            f'<text x="{x + 12:g}" y="{y + 17:g}" class="name">{escape(box.name)}</text>'
            f'<text x="{x + 12:g}" y="{y + 34:g}" class="soft">input, {amount}</text>'
        )
        return (
            f'<g class="node input" {tab} aria-label="input {escape(box.name)}, {amount}">'
            f'<rect class="box" {frame}/>{texts}</g>'
        )
    lines, spoken = _texts(part, row)
    texts = f'<text x="{x + 12:g}" y="{y + (16 if row.view else 17):g}">{_cut(lines[0], row.op.kind)}</text>'
    texts += "".join(
        f'<text x="{x + 12:g}" y="{y + 34 + 17 * i:g}" class="soft">{escape(line)}</text>'
        for i, line in enumerate(lines[1:])
    )
    shades = ";".join(f"--{what}:{_shade(getattr(row, what), most):g}" for what, most in largest.items())
    style = "node view" if row.view else "node"
    return (
        f'<g class="{style}" {tab} aria-label="{escape(spoken)}" style="{shades}"><rect class="box" {frame}/>'
        f'<rect class="shade" {frame}/>{texts}</g>'
    )


def _texts(part: Section, row: Facts) -> tuple[list[str], str]:
    """The lines in a box (the first is its module), and what a screen reader says of it."""
    op = row.op
    module = op.name.removesuffix(op.kind).rstrip(".") if op.name.endswith(op.kind) else op.name
    name = f"{op.index} {op.name}" if op.kind in op.name else f"{op.index} {op.name}, {op.kind}"
    if row.view:
        return [module], f"{name}, a view: no new memory"
    if op.kind == "layers":
        return [module, part.layers], f"{name}, {part.layers}"
    kept = [f"keeps {size(row.keeps)}"] if row.keeps else []
    parameters = [f"parameters {size(row.parameters)}"] if row.parameters else []
    made = size(row.allocates) if row.allocates else ""
    lines = [module, " · ".join([f"+ {made}" if made else "no new memory", *kept]), *parameters]
    return lines, ", ".join([name, f"allocates {made}" if made else "no new memory", *kept, *parameters])


def _cut(module: str, kind: str) -> str:
    """A box's first line: kind and module, the module's beginning left out where both do not fit."""
    room = LETTERS - len(kind) - 1
    short = module
    while len(short) > room and "." in short.lstrip("…."):
        short = f"…{short.lstrip('….').partition('.')[2]}"
    if len(short) > room:
        short = f"{short[: room - 1]}…"
    return f'<tspan class="name">{escape(kind)}</tspan> {escape(short)}'


def _shade(value: int, most: int) -> float:
    """0 for nothing, else 0.1 to 0.6: by the square root, so that small amounts can still be told apart."""
    return round(0.1 + 0.5 * math.sqrt(value / most), 3) if value else 0


def _table(part: Section) -> str:
    def number(count: int) -> str:
        return f'<td class="number">{size(count) if count else "–"}</td>'

    def line(row: Facts) -> str:
        flops = flop_words(row.flops) if row.flops else "–"
        cells = "".join(map(number, (row.allocates, row.keeps, row.adds, row.parameters)))
        soft = ' class="soft"' if row.view else ""
        return (
            f'<tr{soft}><td class="number">{row.op.index}</td><th scope="row">{escape(row.op.name)}</th>'
            f'<td>{"view: " if row.view else ""}{escape(row.op.kind)}</td>{cells}<td class="number">{flops}</td></tr>'
        )

    heads: tuple[tuple[str, Any], ...] = (
        ("no.", "number"), ("operator", ""), ("kind", ""), ("allocates", "number"), ("keeps for backward", "number"),
        ("adds to what is kept", "number"), ("parameters", "number"), ("forward", "number"),
    )  # fmt: skip
    head = "".join(f'<th scope="col"{f" class={style}" if style else ""}>{words}</th>' for words, style in heads)
    total = (
        '<tr class="total"><td></td><th scope="row">all</th><td>'
        f"</td>{number(sum(row.allocates for row in part.rows))}<td></td>"
        f"{number(sum(row.adds for row in part.rows))}"
        f"{number(sum(spec.nbytes for spec in part.graph.parameters.values()))}"
        f'<td class="number">{flop_words(sum(row.flops for row in part.rows))}</td></tr>'
    )
    return (
        '<h3 class="apart">In order of execution</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(part.title)}, as a table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(line, part.rows))}{total}</tbody></table></div>"
        '<p class="note">A storage that several operators keep stands with each of them in “keeps”, and once, with '
        "the first, in “adds”. "
        "Parameters count in neither, inputs that all layers share only in “keeps”. Bytes as requested of "
        "the allocator, which rounds up to 512. Memory that an operator takes and returns while it runs (workspaces) "
        "is not shown here; the report of "
        "<code>memsim simulate</code> has it.</p>"
    )
