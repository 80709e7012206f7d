"""The figures' design: colours, axes, traces and hover labels as plain Plotly dictionaries, one set a theme. The page
fills in the numbers.

Dictionaries rather than plotly.graph_objects, whose import alone takes longer than a whole simulation; plotly.js reads
the same either way.
"""

from __future__ import annotations

from typing import Any

from memsim.tape import Category
from memsim.timeline.names import CATEGORY_NAMES, UNSPLIT

Figure = dict[str, Any]

# From the bottom of the stack to its top: what stays between steps in cool colours, what a step makes and drops in warm
# ones.
STACK = (
    Category.WEIGHTS,
    Category.ADAPTERS,
    Category.OPTIMIZER_STATE,
    Category.GRADIENTS,
    Category.INPUTS,
    Category.ACTIVATIONS,
    Category.RECOMPUTATION,
    Category.LOGITS_AND_LOSS,
    Category.SCRATCH,
    Category.UNATTRIBUTED,
)

# Chosen so that any two differ by a CIE76 distance of 15 or more, and neighbours in the stack by 30, in normal vision
# and under
# simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009). "unattributed" never stands beside the
# others.
COLOURS: dict[str, dict[Category | str, str]] = {
    "light": {
        Category.WEIGHTS: "#2c3479",
        Category.ADAPTERS: "#4fc0f5",
        Category.OPTIMIZER_STATE: "#0c6165",
        Category.GRADIENTS: "#a5cbd0",
        Category.INPUTS: "#86705a",
        Category.ACTIVATIONS: "#f98b1c",
        Category.RECOMPUTATION: "#f0d3a0",
        Category.LOGITS_AND_LOSS: "#c03014",
        Category.SCRATCH: "#5c0a35",
        Category.UNATTRIBUTED: "#7c9cc4",
        UNSPLIT: "#8b8da6",
    },
    "dark": {
        Category.WEIGHTS: "#758bed",
        Category.ADAPTERS: "#68dcff",
        Category.OPTIMIZER_STATE: "#2f7561",
        Category.GRADIENTS: "#bcf2d6",
        Category.INPUTS: "#829060",
        Category.ACTIVATIONS: "#ffa514",
        Category.RECOMPUTATION: "#eeeaac",
        Category.LOGITS_AND_LOSS: "#cc3a1e",
        Category.SCRATCH: "#a83f9f",
        Category.UNATTRIBUTED: "#5f82b3",
        UNSPLIT: "#b0a0aa",
    },
}
INK = {
    "light": {
        "ink": "#14181f",
        "soft": "#5a6472",
        "rule": "#e3e7ec",
        "paper": "#ffffff",
        "band": "#f1f4f7",
        "band2": "#dfe5ec",
        "alarm": "#b3001b",
        "mark": "#14181f",
    },
    "dark": {
        "ink": "#eef1f5",
        "soft": "#a3adba",
        "rule": "#2a313b",
        "paper": "#161b22",
        "band": "#1f2630",
        "band2": "#303a47",
        "alarm": "#ff7a85",
        "mark": "#ffffff",
    },
}
# Beside the figures' inks: the page's ground, lines of controls, edges of swatches, free memory, and the bars of
# devices.
EXTRA = {
    "light": {
        "ground": "#f5f7f9",
        "line": "#c4ccd6",
        "edge": "rgba(0,0,0,.18)",
        "free": "#e4e9ef",
        "focus": "#0b57d0",
        "fit": "#3f8f6b",
        "unfit": "#c9d0d9",
    },
    "dark": {
        "ground": "#0d1116",
        "line": "#434d5a",
        "edge": "rgba(255,255,255,.22)",
        "free": "#2c343f",
        "focus": "#8ab4ff",
        "fit": "#3f8f6b",
        "unfit": "#39424e",
    },
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif'


def slug(kind: Category | str) -> str:
    """A category's key in the page: "optimizer-state"."""
    return (kind if isinstance(kind, str) else CATEGORY_NAMES[kind]).replace(" ", "-")


def figures(present: tuple[Category, ...], towers: str = "") -> dict[str, dict[str, Figure]]:
    """By theme and name: {"timeline", "layers"}, each {"traces", "layout"}; a trace's meta.key names the curve to fill
    in. `towers` says which layers are whose, where a model has an encoder and a decoder.
    """
    kinds: list[Category | str] = [*(kind for kind in STACK if kind in present), UNSPLIT]
    return {theme: {"timeline": _timeline(theme, kinds), "layers": _layers(theme, kinds, towers)} for theme in COLOURS}


def axes(theme: str) -> Figure:
    """The layout that a figure of the comparison starts from: {"layout", "ink"}."""
    return {"layout": _base(theme), "ink": INK[theme]}


def config() -> Figure:
    """Plotly's own settings: no logo, no mode bar (the page has labelled buttons), no wheel that would trap a scrolling
    reader.
    """
    return {
        "displaylogo": False,
        "displayModeBar": False,
        "responsive": True,
        "scrollZoom": False,
        "doubleClick": False,
        "showTips": False,
    }


def _base(theme: str) -> Figure:
    ink = INK[theme]
    axis = {
        "gridcolor": ink["rule"],
        "zerolinecolor": ink["rule"],
        "linecolor": ink["rule"],
        "tickcolor": ink["rule"],
        "tickfont": {"color": ink["soft"], "size": 12},
    }
    title = {"font": {"color": ink["soft"], "size": 12}, "standoff": 8}
    return {
        "font": {"family": FONT, "color": ink["ink"], "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 14, "t": 34, "b": 44},
        "showlegend": False,
        "hoverlabel": {
            "bgcolor": ink["paper"],
            "bordercolor": ink["soft"],
            "font": {"color": ink["ink"], "size": 12.5, "family": FONT},
            "align": "left",
        },
        "xaxis": axis | {"title": dict(title), "showgrid": False, "fixedrange": False},
        "yaxis": axis
        | {"title": dict(title), "ticksuffix": "", "fixedrange": True, "rangemode": "tozero", "automargin": False},
    }


def _timeline(theme: str, kinds: list[Category | str]) -> Figure:
    ink, layout = INK[theme], _base(theme)
    layout["hovermode"] = "x"
    layout["hoverdistance"] = -1
    layout["xaxis"] |= {"tickformat": ",d", "nticks": 8, "tickangle": 0}
    layout["xaxis"] |= {
        "showspikes": True,
        "spikemode": "across",
        "spikethickness": 1,
        "spikedash": "dot",
        "spikecolor": ink["soft"],
    }
    layout["yaxis"]["title"] = layout["yaxis"]["title"] | {"text": "GiB"}
    layout["xaxis"]["title"] = layout["xaxis"]["title"] | {"text": "allocator requests, in order"}
    areas = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": kind if isinstance(kind, str) else CATEGORY_NAMES[kind],
            "stackgroup": "live",
            "fillcolor": COLOURS[theme][kind],
            "line": {"width": 0, "shape": "hv", "color": COLOURS[theme][kind]},
            "hoverinfo": "skip",
            "meta": {"key": slug(kind)},
        }
        for kind in kinds
    ]
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "line": {"width": width, "shape": "hv", "color": ink["ink"], "dash": dash},
            "hoverinfo": "skip" if key == "reserved" else "text",
            "meta": {"key": key},
        }
        for key, name, width, dash in (
            ("reserved", "reserved", 1.5, "4px,2px"),
            ("allocated", "allocated", 0.7, "solid"),
        )
    ]
    return {"traces": areas + lines, "layout": layout, "ink": ink}


def _layers(theme: str, kinds: list[Category | str], towers: str) -> Figure:
    layout = _base(theme)
    layout |= {"barmode": "stack", "bargap": 0.12, "hovermode": "x", "dragmode": False}
    layout["margin"] = layout["margin"] | {"t": 10}
    layout["xaxis"] |= {"fixedrange": True, "type": "category", "nticks": 14, "tickangle": 0}
    layout["xaxis"]["title"] = layout["xaxis"]["title"] | {"text": f"layer ({towers})" if towers else "layer"}
    layout["yaxis"]["title"] = layout["yaxis"]["title"] | {"text": "GiB"}
    bars = [
        {
            "type": "bar",
            "name": kind if isinstance(kind, str) else CATEGORY_NAMES[kind],
            "marker": {"color": COLOURS[theme][kind], "line": {"width": 0}},
            "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
            "meta": {"key": slug(kind)},
        }
        for kind in kinds
        if kind != UNSPLIT
    ]
    return {"traces": bars, "layout": layout}
