"""The page of `memsim graph`: a block's operators in the order of execution, with what each allocates and keeps for backward."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from memsim.graph import LayerGraph, Operator, TensorSpec
from memsim.models.model import Model
from memsim.operators import KINDS
from memsim.report.page import render, write
from memsim.words import size, version

VIEWS = ("view", "transpose", "expand", "slice")  # they allocate nothing forward: their edges are drawn through
WIDTH, HEIGHT, GAP_X, GAP_Y = 208, 44, 16, 20
STYLE = """<style>
.graph { overflow: auto; max-height: 82vh; border: 1px solid var(--rule); border-radius: 8px; }
.graph svg { display: block; }
.graph text { font: 12.5px/1 var(--font); fill: var(--ink); }
.graph .bytes { font-size: 12px; fill: var(--soft); }
.graph .box { fill: var(--paper); stroke: var(--edge, var(--rule)); stroke-width: 1; }
.graph .kept .mark { fill: #0072b2; }
.graph .made .mark { fill: #8f8f8f; }
.graph .input .mark { fill: #e69f00; }
.graph g[tabindex]:focus { outline: none; }
.graph g[tabindex]:focus .box { stroke: var(--ink); stroke-width: 2; }
.graph .edge { fill: none; stroke: var(--soft); stroke-opacity: .55; stroke-width: 1.3; }
.graph .edge.save { stroke: #0072b2; stroke-opacity: .9; }
</style>"""


@dataclass(frozen=True)
class Cell:
    """A box of the drawing; bytes as the operator's results and as what it keeps."""

    label: str
    kind: str
    row: int
    lane: int
    made: int
    kept: int
    style: str
    detail: str


def write_graph_html(model: Model, path: str | Path) -> None:
    """Writes the graphs of every distinct kind of layer, and of what surrounds the layers. Raises InputError where the path cannot be written."""
    sections = [
        _section(graph, f"Decoder layer{'' if len(model.layer_graphs) == 1 else f' of kind {i + 1}'}", model.pattern.count(i), model)
        for i, graph in enumerate(model.layer_graphs)
    ]
    sections.append(_section(model.outer, "Around the layers: embedding, head and loss", 1, model))
    settings = model.settings
    head = (
        f"<h1>What one layer allocates, and what it keeps for backward</h1>"
        f'<p class="lead">{len(model.pattern)} decoder layers, {settings.batch} × {settings.sequence} tokens, weights in {escape(settings.dtype)}, '
        f"attention {escape(settings.attention)}{', every layer checkpointed' if model.checkpointed else ''}.</p>"
    )
    html = render(
        kind="layer graph",
        title="memsim graph",
        main=STYLE + head + "".join(sections),
        footer=f"memsim {escape(version())}. One file, complete in itself: it makes no network request.",
        script=(),
        start=THEME,
        data={},
        meta={},
    )
    write(html, Path(path))


THEME = """function failed(error) { const note = document.getElementById("failed"); note.hidden = false; note.textContent = String(error); }
(async () => {
  const button = document.getElementById("theme"), root = document.documentElement;
  const name = () => { button.textContent = root.dataset.theme === "dark" ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; name();
    try { localStorage.setItem("memsim-theme", root.dataset.theme); } catch { /* a page opened from a file may have no storage */ } });
  name();
})()"""


def _section(graph: LayerGraph, title: str, times: int, model: Model) -> str:
    drawn = [op for op in graph.operators if op.kind not in VIEWS]
    parameters = {spec.storage for spec in graph.parameters.values()}
    kept = {s for op in graph.operators for s in op.saved} - parameters
    entering = {spec.storage for spec in graph.inputs.values()}
    saved = sum(graph.storage_bytes[s] for s in kept - entering)
    weights = sum(spec.nbytes for spec in graph.parameters.values())
    flops = sum(KINDS[op.kind].flops(op.inputs, op.outputs, op.attrs) for op in graph.operators)
    note = ""
    if times > 1:
        note = f"{times} such layers keep {size(saved * times)} together"
        note += ", were they not checkpointed: each keeps its input only, and all this comes back while its backward runs" if model.checkpointed else ""
        note = f'<p class="sub">{note}.</p>'
    tiles = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value in (("kept for backward", size(saved)), ("weights", size(weights)), ("operators", str(len(drawn))), ("forward FLOPs", f"{flops:.3g}"))
    )
    return (
        f'<section><h2>{escape(title)}</h2>{note}<dl class="tiles">{tiles}</dl>'
        '<ul class="legend" style="margin-top:16px"><li><span class="swatch" style="background:#0072b2"></span>its result or an input is kept for backward</li>'
        '<li><span class="swatch" style="background:#8f8f8f"></span>nothing is kept</li>'
        '<li><span class="swatch" style="background:#e69f00"></span>from outside</li></ul>'
        f'<div class="graph" tabindex="0" role="group" aria-label="{escape(title)}">{_svg(graph, drawn, parameters)}</div>'
        f"{_table(graph, drawn, parameters)}</section>"
    )


def _label(op: Operator) -> str:
    parts = op.name.split(".")
    return ".".join(parts[:-1]) + f" · {parts[-1]}" if len(parts) > 1 else op.name


def _bytes(graph: LayerGraph, op: Operator, parameters: set[int]) -> tuple[int, int]:
    """Bytes of its results, and of what it keeps besides weights."""
    read = {spec.storage for spec in op.inputs}
    made = sum(graph.storage_bytes[s] for s in {out.storage for out in op.outputs} - read)
    return made, sum(graph.storage_bytes[s] for s in set(op.saved) - parameters)


def _detail(graph: LayerGraph, op: Operator, parameters: set[int]) -> str:
    def words(title: str, specs: tuple[TensorSpec, ...]) -> list[str]:
        return [f"{title} {spec.parameter or ''} {list(spec.shape)} {spec.dtype}".replace("  ", " ") for spec in specs]

    lines = [op.name, *words("reads", op.inputs), *words("makes", op.outputs)]
    lines += [f"keeps {size(graph.storage_bytes[s])}{' (a weight)' if s in parameters else ''}" for s in op.saved]
    lines.append(f"{KINDS[op.kind].flops(op.inputs, op.outputs, op.attrs):.3g} FLOPs")
    return "\n".join(lines)


def _cells(graph: LayerGraph, drawn: list[Operator], parameters: set[int]) -> tuple[list[Cell], list[tuple[int, int, str]]]:
    """Boxes and edges (from, to, style): inputs first, then operators from top to bottom, each below what it continues."""
    cells: list[Cell] = []
    edges: list[tuple[int, int, str]] = []
    maker: dict[int, int] = {}
    last_use: dict[int, int] = {}
    rows = {op: row for row, op in enumerate(drawn, 1)}
    for op in drawn:
        for spec in op.inputs:
            last_use[spec.storage] = rows[op]
    used = [(name, spec) for name, spec in graph.inputs.items() if spec.storage in last_use]
    busy: dict[int, int] = {}  # lane → row until which something runs down it
    end: dict[int, int] = {}  # lane → the box at its end
    for lane, (name, spec) in enumerate(used):
        maker[spec.storage] = len(cells)
        busy[lane], end[lane] = 0, len(cells)  # edges from the top may pass behind boxes
        cells.append(Cell(name, "input", 0, lane, spec.nbytes, 0, "input", f"{name} {list(spec.shape)} {spec.dtype}"))
    for op in drawn:
        row = rows[op]
        sources = sorted({maker[spec.storage] for spec in op.inputs if spec.storage in maker})
        continued = [cells[s].lane for s in reversed(sources) if end.get(cells[s].lane) == s]
        free = [n for n in range(len(busy) + 1) if busy.get(n, -1) < row]
        lane = (continued or free)[0]
        made, kept = _bytes(graph, op, parameters)
        number = len(cells)
        cells.append(Cell(_label(op), op.kind, row, lane, made, kept, "kept" if op.saved else "made", _detail(graph, op, parameters)))
        edges += [(s, number, "save" if any(maker.get(k) == s for k in op.saved) else "") for s in sources]
        busy[lane] = max([row, *(last_use.get(out.storage, row) for out in op.outputs)])
        end[lane] = number
        for out in op.outputs:
            maker.setdefault(out.storage, number)
    return cells, edges


def _svg(graph: LayerGraph, drawn: list[Operator], parameters: set[int]) -> str:
    cells, edges = _cells(graph, drawn, parameters)
    lanes = 1 + max((cell.lane for cell in cells), default=0)
    wide, tall = lanes * (WIDTH + GAP_X) + GAP_X, (1 + max((cell.row for cell in cells), default=0)) * (HEIGHT + GAP_Y) + GAP_Y
    place = [(GAP_X + cell.lane * (WIDTH + GAP_X), GAP_Y + cell.row * (HEIGHT + GAP_Y)) for cell in cells]
    parts = [f'<svg width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}" xmlns="http://www.w3.org/2000/svg">']
    for a, b, style in edges:
        (xa, ya), (xb, yb) = place[a], place[b]
        x1, y1, x2, y2 = xa + WIDTH / 2, ya + HEIGHT, xb + WIDTH / 2, yb
        turn = min(40.0, (y2 - y1) / 2)
        parts.append(f'<path class="edge {style}" d="M{x1:g} {y1:g} C{x1:g} {y2 - turn:g} {x2:g} {y2 - turn:g} {x2:g} {y2:g}"/>')
    for cell, (x, y) in zip(cells, place, strict=True):
        label = cell.label if len(cell.label) <= 30 else "…" + cell.label[-29:]
        amount = size(cell.made) if cell.made else "no new memory"
        kept = f", keeps {size(cell.kept)}" if cell.kept else ""
        parts.append(
            f'<g class="{cell.style}" tabindex="0" role="img" aria-label="{escape(f"{cell.label}: {amount}{kept}")}"><title>{escape(cell.detail)}</title>'
            f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<rect class="mark" x="{x}" y="{y}" width="5" height="{HEIGHT}" rx="2"/>'
            f'<text x="{x + 14}" y="{y + 18}">{escape(label)}</text>'
            f'<text class="bytes" x="{x + 14}" y="{y + 35}">{escape(amount + kept)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def _table(graph: LayerGraph, drawn: list[Operator], parameters: set[int]) -> str:
    rows = []
    for op in drawn:
        made, kept = _bytes(graph, op, parameters)
        flops = KINDS[op.kind].flops(op.inputs, op.outputs, op.attrs)
        rows.append(
            f'<tr><td>{escape(op.name)}</td><td class="number">{size(made) if made else "–"}</td>'
            f'<td class="number">{size(kept) if kept else "–"}</td><td class="number">{flops:.3g}</td></tr>'
        )
    return (
        '<h3>In order</h3><div class="scroll"><table><thead><tr><th scope="col">operator</th><th scope="col" class="number">allocates</th>'
        '<th scope="col" class="number">keeps for backward</th><th scope="col" class="number">FLOPs</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">A storage that several operators keep is listed with each of them, and counted once above. Weights are apart.</p>'
    )
