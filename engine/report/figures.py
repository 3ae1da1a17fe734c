"""Vega-Lite specifications made whole: data, width and the page's theme, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report.section import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
COMPOSED = ("facet", "concat", "hconcat", "vconcat", "repeat", "spec")
FACETS = {"row", "column", "facet"}
# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is too pale here.
CATEGORIES = {
    "light": ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6f00", "#56b4e9", "#e69f00"],
    "dark": ["#56a8e0", "#ee8a4a", "#35c29a", "#dd9abd", "#c7b94a", "#9ad2f2", "#f0b84a"],
}
# Loss is orange, gain is blue; ink on either end keeps a contrast above 4.5. The middle is a pure
# grey, which has no hue that the colours between would pass through.
DIVERGING = {
    "light": ["#dd8f48", "#ecc49d", "#f9f9f9", "#b3cfea", "#6ca6da"],
    "dark": ["#9c5214", "#6a4220", "#242424", "#24476b", "#2868ad"],
}
RAMP = {"light": ["#f9f9f9", "#6ca6da"], "dark": ["#242424", "#2868ad"]}
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"]
INK = {"light": "#1b1f24", "dark": "#e8eaed"}
MUTED = {"light": "#5b646e", "dark": "#9ba4ae"}
RULE = {"light": "#e4e7ea", "dark": "#30363c"}
PAPER = {"light": "#fdfdfc", "dark": "#15181b"}


def theme(mode: str) -> dict[str, Any]:
    """The Vega-Lite config of a mode, `light` or `dark`."""
    ink, muted, rule = INK[mode], MUTED[mode], RULE[mode]
    first = CATEGORIES[mode][0]
    return {
        "background": None,
        "font": FONT,
        "padding": 2,
        "view": {"stroke": None, "continuousHeight": 260},
        "axis": {
            "labelColor": muted,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "labelLimit": 170,
            "gridColor": rule,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
            "labelSeparation": 6,
        },
        "axisBand": {"grid": False},
        "legend": {"labelColor": muted, "titleColor": muted, "titleFontWeight": "normal"},
        "header": {"labelColor": ink, "titleColor": muted, "labelFontSize": 12},
        "title": {"color": ink, "fontWeight": 600, "anchor": "start"},
        "mark": {"color": first, "tooltip": True},
        "point": {"filled": True, "size": 60},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": ink},
        "range": {
            "category": CATEGORIES[mode],
            "diverging": DIVERGING[mode],
            "heatmap": RAMP[mode],
            "ramp": RAMP[mode],
            "symbol": SHAPES,
        },
    }


def whole(figure: Figure, mode: str = "light", width: int | str = "container") -> dict[str, Any]:
    """A specification that can be drawn by itself, with its data in it."""
    values = figure.data.astype(object).where(figure.data.notna(), None).to_dict("records")
    return {**sized(figure, width), "data": {"values": values}, "config": theme(mode)}


def sized(figure: Figure, width: int | str = "container") -> dict[str, Any]:
    """The figure's specification with this width, unless it has one or is composed of several
    views. A height in steps becomes a number: Vega-Lite fits no width beside it."""
    spec = dict(figure.spec)
    encoding = spec.get("encoding", {})
    if "width" in spec or any(key in spec for key in COMPOSED) or FACETS & encoding.keys():
        return spec
    step, y = spec.get("height"), encoding.get("y", {})
    if isinstance(step, Mapping) and "field" in y:
        spec["height"] = step["step"] * len(set(figure.data[y["field"]]))
    return spec | {"width": width}
