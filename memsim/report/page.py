"""Pages from one template: one self-contained file that needs neither network nor server."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from threading import Thread
from typing import Any

from memsim.errors import InputError
from memsim.files import beside
from memsim.report import parts
from memsim.report.figures import COLOURS, EXTRA, FONT, INK, STACK, config, figures, slug
from memsim.report.headline import missing, place
from memsim.report.pack import columns, pack
from memsim.tape import Category
from memsim.timeline.curves import Curves
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT
from memsim.units import capacity
from memsim.version import version

ASSETS = files("memsim.report") / "assets"
SCRIPTS = ("data.js", "chart.js", "moment.js", "map.js", "maptime.js", "page.js")


def write_html(timeline: Curves, path: Path) -> None:
    """Writes the report beside `path` and renames it, so that there is never half a report. Raises InputError where
    that cannot be.
    """
    write(report_html(timeline), path)


def report_html(timeline: Curves) -> str:
    """The report of one Timeline as a page. Raises InputError where there is nothing to show."""
    if not timeline.whole.processed:
        raise InputError(f"{timeline.about.name or 'the Timeline'}: has no event, so there is nothing to report")
    searched = Thread(target=lambda: timeline.bounds)  # compiled code that runs beside the rest of the page's making
    searched.start()
    present = tuple(kind for kind in STACK if kind in timeline.curves)
    data = pack(columns(timeline))
    searched.join()
    versions = ", ".join(
        [f"memsim {version()}", *(f"{name} {number}" for name, number in timeline.about.versions.items())]
    )
    return render(
        kind="memory report",
        title=" ".join(filter(None, ("memsim", timeline.about.name))),
        main=_filled("report.html", parts.fields(timeline, present)),
        footer=f"{escape(versions)}. One file, complete in itself: it makes no network request.",
        script=SCRIPTS,
        start="report()",
        data={"data": data, "plotly": plotly()},
        meta=_meta(timeline, present),
    )


def render(
    *,
    kind: str,
    title: str,
    main: str,
    footer: str,
    script: tuple[str, ...],
    start: str,
    data: dict[str, str],
    meta: dict[str, Any],
) -> str:
    """Any page: `main` is its HTML, `script` its assets, `start` the call that begins, `data` base64 blobs by id,
    `meta` plain data for the script.
    """
    blobs = [f'<script type="application/json" id="meta">{_json(meta)}</script>']
    blobs += [f'<script type="text/plain" id="{name}">{blob}</script>' for name, blob in data.items()]
    fields = {
        "kind": escape(kind),
        "title": escape(title),
        "version": escape(version()),
        "style": _style(),
        "main": main,
        "footer": footer,
        "data": "\n".join(blobs),
        "script": "\n".join(_asset(name) for name in script),
        "start": start,
    }
    return _filled("page.html", fields)


def write(html: str, path: Path) -> None:
    """Writes a page beside `path` and renames it. Raises InputError where the path cannot be written."""
    with beside(path) as file:
        file.write(html.encode())


def notebook_html(timeline: Curves) -> str:
    """The report inside a notebook's cell, walled off in a frame."""
    return framed(report_html(timeline), "memsim report")


def framed(html: str, title: str) -> str:
    """A page inside of another, walled off from it."""
    return f'<iframe srcdoc="{escape(html)}" style="width:100%;height:860px;border:0" title="{escape(title)}"></iframe>'


def plotly() -> str:
    """plotly.js as base64 of gzip: the basic bundle (scatter, bar), 0.4 MB compressed; the Python package ships only
    the whole, 4.8 MB.

    It is plotly-basic.min.js of the npm package plotly.js-basic-dist-min 4.1.1 (MIT), unchanged; a test holds it to
    that file's SHA-256.
    """
    return base64.b64encode((ASSETS / "plotly-basic.min.js.gz").read_bytes()).decode()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _filled(name: str, fields: dict[str, str]) -> str:
    return Template(_asset(name)).substitute(fields)


def _style() -> str:
    def block(theme: str) -> str:
        colours = {slug(kind): colour for kind, colour in COLOURS[theme].items()}
        return "".join(f"--{key}:{value};" for key, value in (INK[theme] | EXTRA[theme] | colours).items())

    return (
        f":root{{--font:{FONT};{block('light')}color-scheme:light}}\n"
        f':root[data-theme="dark"]{{{block("dark")}color-scheme:dark}}\n{_asset("page.css")}'
    )


def _json(value: Any) -> str:
    # "<" would end the script element that carries it
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _meta(timeline: Curves, present: tuple[Category, ...]) -> dict[str, Any]:
    oom = timeline.answer.out_of_memory
    step = parts.home_step(timeline)
    mine = [span for span in timeline.spans if step is not None and span.step == step]
    first, n, calls = timeline.about.first_event, timeline.whole.processed, timeline.tape.calls
    home = {"lo": mine[0].start, "hi": mine[-1].stop} if mine else {"lo": first, "hi": n}
    words = (
        ""
        if oom is None
        else (
            f"<b>out of memory</b><br>{escape(place(timeline.tape, oom.event, first))}"
            f"<br>{escape(missing(oom)).replace(', ', '<br>', 1)}"
        )
    )
    return {
        "categories": [{"number": int(kind), "key": slug(kind), "name": CATEGORY_NAMES[kind]} for kind in present],
        "stack": [
            *({"key": slug(kind), "name": CATEGORY_NAMES[kind]} for kind in present),
            {"key": slug(UNSPLIT), "name": UNSPLIT},
        ],
        "spans": [{"phase": span.phase, "start": span.start, "stop": span.stop} for span in timeline.spans],
        "operators": list(timeline.tape.operators),
        "first": first,
        **({} if calls is None else {"frames": list(calls.frames), "stacks": [list(stack) for stack in calls.stacks]}),
        "capacity": timeline.about.device_memory,
        "capacityWords": f"{timeline.about.device or 'device memory'} {capacity(timeline.about.device_memory or 0)}"
        + (" usable" if timeline.about.counted else ""),
        "oom": None if oom is None else {"event": oom.event, "words": words},
        "moments": parts.moments(timeline),
        "home": home,
        "homeStep": "" if step is None else str(step),
        "figures": figures(present, dict(timeline.about.facts).get("layers", "")),
        "config": config(),
    }
