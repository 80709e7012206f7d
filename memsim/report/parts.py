"""The report's parts as HTML: what does not need the page's script to be read."""

from __future__ import annotations

from html import escape
from itertools import groupby

from memsim.headline import out_of_memory_message, sentences
from memsim.report.figures import COLOURS, STACK, slug
from memsim.report.hints import hints
from memsim.tape import Category
from memsim.timeline import Timeline
from memsim.words import CATEGORY_NAMES, GIB, UNSPLIT, gib, share, size


def body(timeline: Timeline, present: tuple[Category, ...]) -> str:
    """Everything inside the report's <main>."""
    return "\n".join((opening(timeline), tiles(timeline), overview(timeline, present), closeup(timeline), moment(timeline), address_map(), change(timeline), devices(timeline), steps(timeline), run(timeline)))


def opening(timeline: Timeline) -> str:
    """The answer in words, and of what."""
    first, *rest = sentences(timeline)
    words = "".join(f'<p class="lead{" alarm" if sentence.startswith("Out of memory") else ""}">{escape(sentence)}</p>' for sentence in rest)
    facts = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in timeline.about.facts)
    return f'<h1>{escape(first)}</h1>\n{words}\n{f"<dl class=facts>{facts}</dl>" if facts else ""}'


def tiles(timeline: Timeline) -> str:
    """The key numbers."""
    about, spare = timeline.about, timeline.fragmentation("reserved")
    rows = [
        ("peak reserved", gib(timeline.peak_reserved), "held from the driver"),
        ("peak allocated", gib(timeline.peak_allocated), "blocks handed out"),
        ("peak requested", gib(timeline.peak_requested), "bytes asked for"),
        ("reserved, unused", size(spare.reserved - spare.allocated), f"{share(spare.reserved - spare.allocated, spare.reserved)} of reserved, at its peak"),
    ]
    if timeline.loaded_allocated:
        rows.append(("model loaded", gib(timeline.loaded_allocated), f"{about.parameters / 1e9:.2f} B parameters" if about.parameters else "allocated before step 0"))
    if about.trainable_parameters and about.parameters:
        part = 100 * about.trainable_parameters / about.parameters
        rows.append(("trainable", f"{about.trainable_parameters / 1e6:,.1f} M", f"{part:.2f} % of the parameters" if part < 99.995 else "all parameters"))
    cells = "".join(f'<div class="tile"><dt>{name}</dt><dd>{_unit(value)}</dd><dd class="tile-note">{note}</dd></div>' for name, value, note in rows)
    return f'<dl class="tiles">{cells}</dl>'


def _unit(text: str) -> str:
    number, _, unit = text.partition(" ")
    return f"{number} <small>{unit}</small>" if unit else number


def overview(timeline: Timeline, present: tuple[Category, ...]) -> str:
    """The whole run."""
    items = [f'<li><span class="swatch" style="background:var(--{slug(kind)})"></span>{CATEGORY_NAMES[kind]}</li>' for kind in STACK if kind in present]
    items.append(f'<li><span class="swatch" style="background:var(--{slug(UNSPLIT)})"></span>{UNSPLIT}</li>')
    items.append('<li><span class="swatch line"></span>allocated</li><li><span class="swatch line dashed"></span>reserved</li>')
    if timeline.about.device_memory:
        items.append(f'<li><span class="swatch line capacity"></span>{escape(timeline.about.device or "device memory")}</li>')
    label = f"Memory over the whole run: allocated peaks at {gib(timeline.peak_allocated)}, reserved at {gib(timeline.peak_reserved)}. The table of steps has the numbers."
    return f"""<section aria-labelledby="overview-title">
<h2 id="overview-title">The whole run</h2>
<p class="sub">What is alive after each allocator request. Drag over a part to see it up close below; click a moment to see what was alive then.</p>
<ul class="legend">{"".join(items)}</ul>
<figure><div class="plot" id="overview" role="img" aria-label="{escape(label)}"></div></figure>
</section>"""


def closeup(timeline: Timeline) -> str:
    """A part of the run, with the controls that choose it."""
    numbers = list(dict.fromkeys(span.step for span in timeline.spans if span.step is not None))
    kinds = list(dict.fromkeys(span.kind for span in timeline.spans if span.step is not None))
    home = home_step(timeline)
    layers = int(timeline.tape.layer.max()) + 1 if len(timeline.tape) else 0

    def options(rows: list[tuple[str, str]], chosen: str = "") -> str:
        return "".join(f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(name)}</option>' for value, name in rows)

    steps_menu = options([("", "whole run"), *((str(k), f"step {k}") for k in numbers)], "" if home is None else str(home))
    phase_menu = options([("", "all phases"), *((kind, kind) for kind in kinds)])
    layer_menu = options([("", "all layers"), *((str(k), f"layer {k}") for k in range(layers))])
    label = "Memory over the chosen part of the run, by category. The section on what is alive gives any moment in words and numbers."
    return f"""<section aria-labelledby="closeup-title">
<h2 id="closeup-title">Up close</h2>
<p class="sub" id="closeup-note"></p>
<div class="controls">
<select id="go-step" aria-label="Step to show">{steps_menu}</select>
<select id="go-phase" aria-label="Phase to show">{phase_menu}</select>
<select id="go-layer" aria-label="Layer to show"{"" if layers else " hidden"}>{layer_menu}</select>
<span class="group" role="group" aria-label="Move and zoom"><button type="button" id="pan-left" aria-label="Move left">←</button><button type="button" id="pan-right" aria-label="Move right">→</button><button type="button" id="zoom-in" aria-label="Zoom in">+</button><button type="button" id="zoom-out" aria-label="Zoom out">−</button></span>
<button type="button" id="reset">Reset</button>
<span class="gap"></span>
<label><input type="checkbox" id="leave-out"> leave out what is held throughout</label>
</div>
<figure><div class="plot" id="closeup" role="img" aria-label="{escape(label)}"></div></figure>
</section>"""


def home_step(timeline: Timeline) -> int | None:
    """The step that the close-up opens with: where memory ran out, or else where it was highest; None where that is in no step."""
    oom = timeline.answer.out_of_memory if timeline.unlimited is None else None
    event = oom.event if oom else timeline.peak_event()
    return next((span.step for span in timeline.spans if span.start <= event < span.stop), None)


def moments(timeline: Timeline) -> list[dict[str, object]]:
    """The moments that have a button: title, button and event."""
    allocated, reserved = timeline.peak_event("allocated"), timeline.peak_event("reserved")
    found: list[dict[str, object]] = [{"event": allocated, "name": "Peak of allocated", "title": "What is alive at the peak of allocated"}]
    if reserved != allocated:
        found.append({"event": reserved, "name": "Peak of reserved", "title": "What is alive when reserved first reaches its peak"})
    oom = timeline.answer.out_of_memory
    if oom is not None:
        found.append({"event": oom.event, "name": "Out of memory", "title": "What is alive when memory runs out"})
    return found


def moment(timeline: Timeline) -> str:
    """What was alive at a moment; the script fills it in."""
    buttons = "".join(f'<button type="button" data-moment="{m["event"]}" aria-pressed="false">{m["name"]}</button>' for m in moments(timeline))
    last = max(timeline.whole.processed - 1, 0)
    return f"""<section aria-labelledby="moment-title">
<h2 id="moment-title">What is alive at the peak</h2>
<p class="sub" id="moment-place" aria-live="polite"></p>
<div class="controls">{buttons}
<span class="gap"></span>
<span class="group" role="group" aria-label="One event back or on"><button type="button" id="moment-before" aria-label="One event back">←</button><button type="button" id="moment-after" aria-label="One event on">→</button></span>
<label>event <input type="number" id="moment-event" min="0" max="{last}" step="1"></label>
</div>
<div class="strip" id="moment-strip" aria-hidden="true"></div>
<div class="two">
<div><h3>By category</h3><table><caption class="hidden-label">Bytes alive by category</caption><tbody id="moment-categories"></tbody></table></div>
<figure id="layers-figure"><div class="row"><h3>By layer</h3><label class="controls" style="margin:0"><input type="checkbox" id="without-weights"> leave out weights</label></div>
<div class="plot" id="layers" role="img" aria-label="Bytes alive in each decoder layer, by category"></div></figure>
</div>
<h3 style="margin-top:20px">The largest</h3>
<div class="scroll" tabindex="0" role="region" aria-label="The largest storages alive"><table>
<thead><tr><th scope="col">allocated by</th><th scope="col" class="number">together</th><th scope="col" class="number wide">each</th><th scope="col">layers</th><th scope="col" class="wide">since</th></tr></thead>
<tbody id="moment-largest"></tbody></table></div>
<p class="note" id="moment-rest"></p>
</section>"""


def address_map() -> str:
    """Segments and blocks at the same moment; the script fills it in."""
    return """<section aria-labelledby="map-title">
<h2 id="map-title">Where it lies: segments, blocks and the room between them</h2>
<p class="sub" id="spare"></p>
<table style="max-width:760px"><caption class="hidden-label">Reserved but not allocated</caption><tbody id="spare-rows"></tbody></table>
<p class="note" id="spare-largest"></p>
<div class="controls" style="margin-top:16px"><label>Show <select id="map-only"><option value="all">all segments</option><option value="holes">segments with free memory</option><option value="cached">segments wholly free</option></select></label></div>
<canvas id="map" tabindex="0" role="img" aria-describedby="segment-note"></canvas>
<p class="note" id="map-empty" hidden>There is none.</p>
<div class="segment"><canvas id="segment" aria-hidden="true"></canvas><p class="note" id="segment-note" aria-live="polite"></p></div>
</section>"""


def change(timeline: Timeline) -> str:
    """What follows for someone who wants the peak lower."""
    rows = "".join(f"<li>{escape(hint)}</li>" for hint in hints(timeline))
    if not rows:
        return ""
    return f'<section aria-labelledby="change-title"><h2 id="change-title">What would change it</h2><ul class="hints">{rows}</ul></section>'


def devices(timeline: Timeline) -> str:
    """The catalogue's devices against the peak, where the run names them."""
    if not timeline.about.devices or (timeline.out_of_memory and timeline.unlimited is None):
        return ""
    peak, rows = timeline.peak_reserved, []
    ordered = sorted(timeline.about.devices, key=lambda device: device[1])
    scale = max(peak * 1.04, ordered[-1][1])
    for memory, same in groupby(ordered, key=lambda device: device[1]):
        names, fits = ", ".join(escape(name) for name, _ in same), memory >= peak
        verdict = f"<b>{gib(memory - peak)}</b> to spare" if fits else f"lacks {gib(peak - memory)}"
        track = f'<span class="track"><span style="width:{100 * memory / scale:.2f}%"></span><i style="left:{100 * peak / scale:.2f}%"></i></span>'
        rows.append(f'<li class="{"yes" if fits else "no"}"><span>{names} <span class="soft">{gib(memory)}</span></span>{track}<span class="number">{verdict}</span></li>')
    return f"""<section aria-labelledby="devices-title"><h2 id="devices-title">Which devices hold it</h2>
<p class="sub">The line is the peak of reserved, {gib(peak)}. The CUDA context and other processes come on top of it, about half a GiB on a device of your own. A device that lacks a little may still do, by giving back cached memory: simulate it to know.</p>
<ul class="devices">{"".join(rows)}</ul></section>"""


def steps(timeline: Timeline) -> str:
    """The table of steps."""
    rows = timeline.steps_needed
    if not rows:
        return ""
    most = {key: max(getattr(step, key) or 0 for step in rows) for key in ("peak_allocated", "peak_reserved", "peak_requested", "peak_after_forward", "peak_after_backward")}
    shown = (
        ("peak_after_forward", "peak, after forward", "wide"),
        ("peak_after_backward", "peak, after backward", "wide"),
        ("peak_requested", "peak requested", "wide"),
        ("peak_allocated", "peak allocated", ""),
        ("peak_reserved", "peak reserved", ""),
        ("end_allocated", "allocated at the end", "wide"),
        ("end_reserved", "reserved at the end", "wide"),
    )
    head = "".join(f'<th scope="col" class="number {wide}">{name}</th>' for _, name, wide in shown)
    lines = []
    for step in rows:
        cells = []
        for key, _, wide in shown:
            value = getattr(step, key)
            top = key in ("peak_allocated", "peak_reserved", "peak_requested") and value == most[key]
            cells.append(f'<td class="number {wide}{" peak" if top else ""}">{"–" if value is None else f"{value / GIB:.2f}"}</td>')
        lines.append(f'<tr><th scope="row">{step.step}</th>{"".join(cells)}<td class="number wide">{step.peak_segments:,}</td><td class="number">{step.retries}</td></tr>')
    without = " As they would be with enough memory." if timeline.unlimited is not None else ""
    return f"""<section aria-labelledby="steps-title"><h2 id="steps-title">Steps</h2>
<p class="sub">In GiB; peaks include the level at which a step starts, as torch.cuda.reset_peak_memory_stats() at its start would give them.{without}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of steps"><table><thead><tr><th scope="col">step</th>{head}<th scope="col" class="number wide">segments</th><th scope="col" class="number">cache given back</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div></section>"""


def run(timeline: Timeline) -> str:
    """What was simulated, and how to repeat it."""
    about, parts = timeline.about, []
    if about.command:
        parts.append(f'<div class="row"><h3>Command</h3><button type="button" data-copy="command">Copy</button></div><pre id="command">{escape(about.command)}</pre>')
    if about.yaml:
        parts.append(f'<div class="row" style="margin-top:16px"><h3>Run</h3><button type="button" data-copy="yaml">Copy</button></div><pre id="yaml">{escape(about.yaml.strip())}</pre>')
    message = out_of_memory_message(timeline.answer.out_of_memory)
    if message:
        parts.append(f'<h3 style="margin-top:16px">What PyTorch would say</h3><pre>{escape(message)}</pre>')
    return f'<section aria-labelledby="run-title"><h2 id="run-title">To repeat it</h2>{"".join(parts)}</section>' if parts else ""


def variables(theme: str) -> str:
    """The categories' colours as CSS variables."""
    return "".join(f"--{slug(kind)}:{colour};" for kind, colour in COLOURS[theme].items())
