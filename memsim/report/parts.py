"""The parts of the report that Python writes: everything that is to be read without the page's script."""

from __future__ import annotations

from html import escape
from itertools import groupby

from memsim.allocator.message import out_of_memory_message
from memsim.report.figures import STACK, slug
from memsim.report.headline import sentences
from memsim.report.hints import hints
from memsim.tape import Category
from memsim.timeline.curves import Curves
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT, phase_words
from memsim.timeline.steps import Step
from memsim.units import GIB, MIB, capacity, duration, percent, share, size

COLUMNS = (  # of the table of steps: field, heading, whether a phone has no room for it
    ("peak_after_forward", "peak, after forward", True),
    ("peak_after_backward", "peak, after backward", True),
    ("peak_requested", "peak requested", True),
    ("peak_allocated", "peak allocated", False),
    ("peak_reserved", "peak reserved", False),
    ("end_allocated", "allocated at the end", True),
    ("end_reserved", "reserved at the end", True),
)


def fields(timeline: Curves, present: tuple[Category, ...]) -> dict[str, str]:
    """What fills assets/report.html; `present` are the categories that occur."""
    answer, *rest = sentences(timeline)
    numbers = list(dict.fromkeys(span.step for span in timeline.spans if span.step is not None))
    kinds = list(dict.fromkeys(span.kind for span in timeline.spans if span.step is not None))
    layers = int(timeline.tape.layer.max()) + 1
    home = home_step(timeline)
    label = (
        f"Memory over the whole run: allocated peaks at {size(timeline.peak_allocated)}, reserved at "
        f"{size(timeline.peak_reserved)}. "
        "The table of steps has the numbers."
    )
    return {
        "answer": escape(answer),
        "leads": "\n".join(
            f'<p class="lead{" alarm" if line.startswith("Out of memory") else ""}">{escape(line)}</p>' for line in rest
        ),
        "facts": "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in timeline.about.facts
        ),
        "tiles": tiles(timeline),
        "legend": legend(timeline, present),
        "overview_label": escape(label),
        "step_menu": _options(
            [("", "whole run"), *((str(k), f"step {k}") for k in numbers)], "" if home is None else str(home)
        ),
        "phase_menu": _options([("", "all phases"), *((kind, kind) for kind in kinds)]),
        "layer_menu": _options([("", "all layers"), *((str(k), f"layer {k}") for k in range(layers))]),
        "moment_buttons": "".join(
            f'<button type="button" data-moment="{moment["event"]}" aria-pressed="false">{moment["name"]}</button>'
            for moment in moments(timeline)
        ),
        "last_event": str(timeline.whole.processed - 1 - timeline.about.first_event),
        "map_hidden": "" if len(timeline.whole.driver_event) else " hidden",
        "cost": cost(timeline),
        "pace": pace(timeline),
        "change": change(timeline),
        "devices": devices(timeline),
        "steps": steps(timeline),
        "run": run(timeline),
    }


def home_step(timeline: Curves) -> int | None:
    """The step that the close-up opens with: where memory ran out, or else where it was highest; None where that is in
    no step.
    """
    oom = timeline.answer.out_of_memory if timeline.unlimited is None else None
    event = oom.event if oom else timeline.peak_event()
    return next((span.step for span in timeline.spans if span.start <= event < span.stop), None)


def moments(timeline: Curves) -> list[dict[str, object]]:
    """The moments that have a button: event, the button's name, and the title of what it shows."""
    allocated, reserved = timeline.peak_event("allocated"), timeline.peak_event("reserved")
    found: list[dict[str, object]] = [
        {"event": allocated, "name": "Peak of allocated", "title": "What is alive at the peak of allocated"}
    ]
    if reserved != allocated:
        found.append(
            {
                "event": reserved,
                "name": "Peak of reserved",
                "title": "What is alive when reserved first reaches its peak",
            }
        )
    oom = timeline.answer.out_of_memory
    if oom is not None and oom.event not in (allocated, reserved):
        found.append({"event": oom.event, "name": "Out of memory", "title": "What is alive when memory runs out"})
    return found


def tiles(timeline: Curves) -> str:
    """The key numbers."""
    about, spare = timeline.about, timeline.fragmentation("reserved")
    unused = spare.reserved - spare.allocated
    phase = phase_words(timeline.tape.phases[timeline.tape.phase[spare.event]])
    when = ", ".join(filter(None, (f"event {spare.event - about.first_event:,}", phase)))
    rows = [
        ("peak reserved", size(timeline.peak_reserved), "held from the driver"),
        ("peak allocated", size(timeline.peak_allocated), "blocks handed out"),
        ("peak requested", size(timeline.peak_requested), "bytes asked for"),
        ("reserved, unused", size(unused), f"when reserved peaks ({when}): {size(spare.allocated)} is allocated then"),
    ]
    if timeline.loaded_allocated:
        note = f"{about.parameters / 1e9:.2f} B parameters" if about.parameters else "allocated before step 0"
        rows.append(("model loaded", size(timeline.loaded_allocated), note))
    if about.trainable_parameters and about.parameters:
        part = 100 * about.trainable_parameters / about.parameters
        rows.append(
            (
                "trainable",
                f"{about.trainable_parameters / 1e6:,.1f} M",
                f"{part:.2f} % of the parameters" if part < 99.995 else "all parameters",
            )
        )
    if timeline.step_time is not None and timeline.step_time.total:
        rows.append(
            (
                "a step, estimated",
                duration(timeline.step_time.total),
                f"{timeline.step_time.tokens_per_second:,.0f} tokens/s",
            )
        )
    return "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{_small_unit(value)}</dd><dd class="tile-note">{note}</dd></div>'
        for name, value, note in rows
    )


def legend(timeline: Curves, present: tuple[Category, ...]) -> str:
    """Areas and lines of the timelines."""
    kinds: list[Category | str] = [*(kind for kind in STACK if kind in present), UNSPLIT]
    items = [
        (
            f'<span class="swatch" style="background:var(--{slug(kind)})"></span>',
            kind if isinstance(kind, str) else CATEGORY_NAMES[kind],
        )
        for kind in kinds
    ]
    items += [
        ('<span class="swatch line"></span>', "allocated"),
        ('<span class="swatch line dashed"></span>', "reserved"),
    ]
    if timeline.about.device_memory:
        items.append(('<span class="swatch line capacity"></span>', escape(timeline.about.device or "device memory")))
    return "".join(f"<li>{swatch}{name}</li>" for swatch, name in items)


def cost(timeline: Curves) -> str:
    """The peak of reserved, divided into what the requests cost, what placing them costs, and what the
    allocator adds.
    """
    bounds = timeline.bounds
    if bounds is None or not bounds.reserved or (timeline.out_of_memory and timeline.unlimited is None):
        return ""
    packing = bounds.live if bounds.packing is None else bounds.packing
    asked = (
        "asked for at once",
        bounds.live,
        "cost-model",
        "the most that is alive together: no allocator can do with less",
    )
    placed = (
        "having a place for it",
        packing - bounds.live,
        "cost-packing",
        "the best placement known, with every lifetime known in advance and no block ever moved",
    )
    held = (
        "PyTorch's allocator",
        bounds.reserved - packing,
        "cost-allocator",
        "it knows no lifetimes, and never moves a block: what a perfect placement would save",
    )
    rows = [asked, held] if bounds.packing is None else [asked, placed, held]
    lines = "".join(
        f'<tr><th scope="row"><span class="swatch {look}"></span>{name}<span class="why">{why}</span></th>'
        f'<td class="number">{size(value)}</td><td class="number soft">{share(value, bounds.reserved)}</td></tr>'
        for name, value, look, why in rows
    )
    strip = "".join(f'<span class="{look}" style="flex:{value} 0 0"></span>' for _, value, look, _ in rows if value)
    sub = (
        f"Of the {size(bounds.reserved)} reserved at the peak, what the run itself needs, and what comes of where its "
        "blocks lie."
    )
    table = (
        f'<table class="narrow"><caption class="hidden-label">Parts of the peak of reserved</caption><tbody>{lines}'
        "</tbody></table>"
    )
    return _section(
        "cost", "What fragmentation costs", sub, f'<div class="strip" aria-hidden="true">{strip}</div>{table}'
    )


def pace(timeline: Curves) -> str:
    """Where the time of a step is estimated to go."""
    time, rates = timeline.step_time, timeline.about.rates
    if time is None or rates is None or not time.total:
        return ""
    rows = [
        ("forward", time.forward, "cost-model", ""),
        ("backward", time.backward, "cost-allocator", ""),
        ("recomputation", time.recomputation, "cost-packing", "what checkpointing executes again"),
        ("optimizer", time.optimizer, "time-optimizer", ""),
    ]
    lines = "".join(
        f'<tr><th scope="row"><span class="swatch {look}"></span>{name}{_why(why)}</th>'
        f'<td class="number">{duration(value)}</td><td class="number soft">{percent(value / time.total)}</td></tr>'
        for name, value, look, why in rows
        if value
    )
    strip = "".join(
        f'<span class="{look}" style="flex:{1e6 * value:.0f} 0 0"></span>' for _, value, look, _ in rows if value
    )
    e = rates.efficiency
    sub = (
        f"The last step, as {rates.device.label} would execute it: {duration(time.total)}, "
        f"{time.tokens_per_second:,.0f} tokens/s, {percent(time.mfu)} of its "
        "matrix products' rate in 16 bits (MFU: what the model itself computes, forward and backward, without "
        f"recomputation). A roofline over the data sheet at {percent(e.matmul)} of the rate of each product's dtype, "
        f"{percent(e.attention)} within attention, and "
        f"{percent(e.memory)} of the memory's bandwidth: an estimate, where memory is exact. Give --measured-step to "
        "calibrate it."
    )
    table = (
        f'<table class="narrow"><caption class="hidden-label">Parts of a step\'s time</caption><tbody>{lines}</tbody>'
        "</table>"
    )
    return _section("time", "Where the time goes", sub, f'<div class="strip" aria-hidden="true">{strip}</div>{table}')


def _why(words: str) -> str:
    return f'<span class="why">{words}</span>' if words else ""


def change(timeline: Curves) -> str:
    """What follows for someone who wants the peak lower."""
    rows = "".join(f"<li>{escape(hint)}</li>" for hint in hints(timeline))
    return _section("change", "What would change it", "", f'<ul class="hints">{rows}</ul>') if rows else ""


def devices(timeline: Curves) -> str:
    """The catalogue's devices against the peak, where the run names them and the peak is known."""
    if not timeline.about.devices or (timeline.out_of_memory and timeline.unlimited is None):
        return ""
    peak, rows = timeline.peak_reserved, []
    ordered = sorted(timeline.about.devices, key=lambda device: device[1])
    scale = max(peak * 1.04, ordered[-1][1])
    for memory, same in groupby(ordered, key=lambda device: device[1]):
        names, fits = ", ".join(escape(name) for name, _ in same), memory >= peak
        verdict = f"<b>{size(memory - peak)}</b> to spare" if fits else f"lacks {size(peak - memory)}"
        track = (
            f'<span class="track"><span style="width:{100 * memory / scale:.2f}%"></span>'
            f'<i style="left:{100 * peak / scale:.2f}%"></i></span>'
        )
        label = f'<span class="names">{names} <span class="soft">{capacity(memory)} usable</span></span>'
        rows.append(f'<li class="{"yes" if fits else "no"}">{label}{track}<span class="number">{verdict}</span></li>')
    sub = (
        f"The line is the peak of reserved, {size(peak)}. A device counts by what PyTorch sees of it less the CUDA "
        "context; what other processes take comes on top. "
        "A device that lacks a little may still do, by giving back cached memory: simulate it to know."
    )
    return _section("devices", "Which devices hold it", sub, f'<ul class="devices">{"".join(rows)}</ul>')


def steps(timeline: Curves) -> str:
    """The table of steps."""
    rows = timeline.steps_needed
    if not rows:
        return ""
    unit, name = (GIB, "GiB") if timeline.peak_reserved >= GIB else (MIB, "MiB")
    sub = (
        f"In {name}. Peaks include the level at which a step starts, as torch.cuda.reset_peak_memory_stats() at its "
        "start would give them."
    )
    sub += " As they would be with enough memory." if timeline.unlimited is not None else ""
    heads = [
        ("step", ""),
        *((name, _number(wide)) for _, name, wide in COLUMNS),
        ("segments", _number(True)),
        ("cache given back", _number(True)),
    ]
    head = "".join(f'<th scope="col" class="{look}">{name}</th>' for name, look in heads)
    lines = "".join(_row(step, rows, unit) for step in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return _section(
        "steps",
        "Steps",
        sub,
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of steps">{table}</div>',
    )


def _row(step: Step, rows: tuple[Step, ...], unit: int) -> str:
    cells = []
    for field, _, wide in COLUMNS:
        value = getattr(step, field)
        top = field in ("peak_allocated", "peak_reserved", "peak_requested") and value == max(
            getattr(row, field) for row in rows
        )
        words = "–" if value is None else f"{value / unit:.2f}"
        cells.append(f'<td class="{_number(wide)}{" peak" if top else ""}">{words}</td>')
    cells.append(
        f'<td class="{_number(True)}">{step.peak_segments:,}</td><td class="{_number(True)}">{step.retries}</td>'
    )
    return f'<tr><th scope="row">{step.step}</th>{"".join(cells)}</tr>'


def run(timeline: Curves) -> str:
    """What was simulated, and how to repeat it."""
    about = timeline.about
    parts = [
        _copied("command", "Command", about.command) if about.command else "",
        _copied("yaml", "Run", about.yaml.strip()) if about.yaml else "",
    ]
    message = out_of_memory_message(timeline.answer.out_of_memory, about.context)
    if message:
        parts.append(f'<h3 class="apart">What PyTorch would say</h3><pre>{escape(message)}</pre>')
    content = "".join(parts)
    return _section("run", "To repeat it", "", content) if content else ""


def commanded(command: str, name: str) -> str:
    """How to repeat a page."""
    return _section("run", "To repeat it", "", _copied(name, "Command", command))


def _copied(name: str, title: str, text: str) -> str:
    button = f'<button type="button" data-copy="{name}" aria-label="Copy: {title}">Copy</button>'
    return f'<div class="row apart"><h3>{title}</h3>{button}</div><pre id="{name}">{escape(text)}</pre>'


def _section(name: str, title: str, sub: str, content: str) -> str:
    note = f'<p class="sub">{sub}</p>' if sub else ""
    return f'<section aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{note}{content}\n</section>'


def _options(rows: list[tuple[str, str]], chosen: str = "") -> str:
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(name)}</option>'
        for value, name in rows
    )


def _number(wide: bool) -> str:
    return "number wide" if wide else "number"


def _small_unit(text: str) -> str:
    number, _, unit = text.partition(" ")
    return f"{number} <small>{unit}</small>"
