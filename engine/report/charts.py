"""The four charts of the report, as Vega-Lite: bars, a heat map, a scatter and curves.

A chart is made of a table (`columns` tells units, so axes, signs and tooltips follow from the names
of its columns) and drawn by `drawn` in the page's theme, in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas

from engine.report import columns
from engine.report.section import Figure

Spec = dict[str, Any]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
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
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"]  # 5 by 7 colours are 35 pairs
INK = {"light": "#1b1f24", "dark": "#e8eaed"}
MUTED = {"light": "#5b646e", "dark": "#9ba4ae"}
RULE = {"light": "#e4e7ea", "dark": "#30363c"}
LEGEND = {"orient": "bottom", "columns": 3, "title": None, "symbolOpacity": 1}
OWN = "datum.downstream === datum.evaluated_on"  # a model on the set that it was fine-tuned on


def bars(data: pandas.DataFrame, value: str, *, dots: str = "") -> Spec:
    """A bar from zero for each method, with a whisker over its interval.

    dots: a column whose values are dots on the bars, in rows that have no `value`.
    """
    low, high = (f"{columns.base(value)}_{end}" for end in ("low", "high"))
    ends = {"x": {"field": low, "type": "quantitative"}, "x2": {"field": high}}
    bar = {"type": "bar", "height": {"band": 0.62}, "opacity": 0.4 if dots else 0.85}
    layers: list[Spec] = [
        {"mark": bar, "encoding": {"x": _number(value)}},
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": ends},
    ]
    if dots:
        x = _number(dots) | {"title": None}
        layers.append({"mark": {"type": "point", "size": 32}, "encoding": {"x": x}})
    encoding = {"y": _names("method", data), "tooltip": _tooltip(data)}
    return {"height": 24 * data["method"].nunique(), "encoding": encoding, "layer": layers}


def heat(
    data: pandas.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    on_downstream: str = "",
    end: float | None = None,
) -> Spec:
    """Colours with the number in each cell: points from loss to gain, other numbers from 0 up.

    on_downstream: a column whose numbers stand, outlined, in cells of a model on the set that it
    was fine-tuned on. end: of the scale; by default from the numbers.
    """
    signed = columns.unit(value) == "pts"
    end = end or scale_end(data[value], fives=signed)
    scale = {"domain": [-end, end], "domainMid": 0} if signed else {"domain": [0, end]}
    color = {"field": value, "type": "quantitative", "scale": scale, "legend": None}
    text = {"field": value, "type": "quantitative", "format": "+.1f" if signed else ".3~r"}
    layers: list[Spec] = [
        {"mark": {"type": "rect"}, "encoding": {"color": color}},
        {"mark": {"type": "text", "fontSize": 11 if signed else 9}, "encoding": {"text": text}},
    ]
    if on_downstream:
        text["format"] = "+.0f"
        number = {"field": on_downstream, "type": "quantitative", "format": ".0f"}
        outline = {"type": "rect", "filled": False, "strokeWidth": 1, "strokeOpacity": 0.5}
        italic = {"type": "text", "fontStyle": "italic", "opacity": 0.75}
        layers = [layer | {"transform": [{"filter": f"!({OWN})"}]} for layer in layers] + [
            {"transform": [{"filter": OWN}], "mark": outline},
            {"transform": [{"filter": OWN}], "mark": italic, "encoding": {"text": number}},
        ]
    return {
        "padding": {"left": 2, "top": 2, "bottom": 2, "right": 36},  # slanted names stick out
        "height": 26 * data[y].nunique(),
        "encoding": {
            "x": _names(x, data, orient="top", labelAngle=-45, labelLimit=90),
            "y": _names(y, data),
            "tooltip": _tooltip(data),
        },
        "layer": layers,
    }


def scatter(
    data: pandas.DataFrame, x: str, y: str, color: str, *, curve: str = "", facet: str = ""
) -> Spec:
    """A dot for each row that has a value in the column `color`, which colour and shape tell.

    curve: a column; its rows of one value are small dots on a line, in the order of `alpha`.
    facet: a column with a panel for each value.
    """
    group = {"field": color, "type": "nominal", "sort": None, "legend": LEGEND}
    tooltip = {"tooltip": _tooltip(data)}
    layers: list[Spec] = []
    if curve:
        line = {"type": "line", "strokeWidth": 1.5, "opacity": 0.5, "point": {"size": 28}}
        order = {"detail": {"field": curve}, "order": {"field": "alpha"}}
        shown = [{"filter": f"datum.{curve} !== null"}]
        layers.append({"transform": shown, "mark": line, "encoding": order | tooltip})
    dot = {"type": "point", "size": 34 if facet else 80, "opacity": 0.85}
    marked = {"color": group, "shape": group, **tooltip}
    layers.append({"transform": [{"filter": f"datum.{color}"}], "mark": dot, "encoding": marked})
    channels = {"x": _number(x, zero=False), "y": _number(y, zero=False)}
    view = {"encoding": channels, "layer": layers}
    return _facets(data, facet, view, 190) if facet else {"height": 340, **view}


def curve(
    data: pandas.DataFrame,
    x: str,
    y: str,
    color: str,
    *,
    x_title: str = "",
    ticks: Mapping[float, str] | None = None,
    log: bool = False,
    facet: str = "",
    detail: str = "",
) -> Spec:
    """A line for each value of `color`, with its interval as a band.

    ticks: texts of the x axis, by place. log: a logarithmic x axis. facet: a column with a panel
    for each value where it has several. detail: a column that tells lines of one colour apart. An x
    of words has points and whiskers in place of lines and bands.
    """
    is_number = pandas.api.types.is_numeric_dtype
    place: Spec = {"field": x, "type": "ordinal", "sort": None, "title": x_title}
    band, mark = {"type": "rule"}, {"type": "point"}
    if is_number(data[x]):
        axis: Spec = {"grid": False, "format": "~g", "labelOverlap": True}
        if ticks:
            texts = " : ".join(f"datum.value === {k!r} ? '{v}'" for k, v in ticks.items())
            axis |= {"values": list(ticks), "labelExpr": f"{texts} : datum.label"}
        scale = {"type": "log", "nice": False} if log else {"zero": False, "nice": False}
        place |= {"type": "quantitative", "scale": scale | {"padding": 12}, "axis": axis}
        band = {"type": "area", "opacity": 0.15, "tooltip": False}
        mark = {"type": "line", "point": {"size": 30}}
    encoding: Spec = {"x": place}
    if color:
        kind = "ordinal" if data[color].nunique() > len(CATEGORIES["light"]) else "nominal"
        encoding["color"] = {"field": color, "type": kind, "sort": None, "legend": LEGEND}
        if not is_number(data[x]):
            encoding["xOffset"] = {"field": detail or color}
    if detail:
        encoding["detail"] = {"field": detail}
    number = _number(y, zero=columns.unit(y) == "pts")
    low, high = (f"{columns.base(y)}_{end}" for end in ("low", "high"))
    layers: list[Spec] = []
    if low in data:
        ends = {"y": number | {"field": low}, "y2": {"field": high}}
        layers.append({"mark": band, "encoding": ends})
    layers.append({"mark": mark, "encoding": {"y": number, "tooltip": _tooltip(data)}})
    view = {"encoding": encoding, "layer": layers}
    if facet and data[facet].nunique() > 1:
        return _facets(data, facet, view, 230)
    return {"height": 300, **view}


def scale_end(values: pandas.Series, *, fives: bool = True) -> float:
    """End of a colour scale: the largest absolute value; of points, rounded up to fives."""
    largest = float(values.abs().max()) if values.notna().any() else 0.0
    return max(1, math.ceil(largest / 5)) * 5.0 if fives else largest or 1.0


def drawn(figure: Figure, mode: str = "light", width: int | str = "container") -> Spec:
    """A specification that can be drawn by itself, with its data in it."""
    data = figure.data.astype(object).where(figure.data.notna(), None)
    whole = {"data": {"values": data.to_dict("records")}, "config": theme(mode)}
    return {**sized(figure.spec, width), **whole}


def sized(spec: Mapping[str, Any], width: int | str = "container") -> Spec:
    """The chart with this width, unless it has panels."""
    return dict(spec) if "facet" in spec else {**spec, "width": width}


def theme(mode: str) -> Spec:
    """The Vega-Lite config of a mode, `light` or `dark`."""
    ink, muted = INK[mode], MUTED[mode]
    plain = {"labelColor": muted, "titleColor": muted, "titleFontWeight": "normal"}
    axis = plain | {
        "titlePadding": 8,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "labelLimit": 170,
        "gridColor": RULE[mode],
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "labelSeparation": 6,
    }
    return {
        "background": None,
        "font": FONT,
        "padding": 2,
        "view": {"stroke": None, "continuousHeight": 260},
        "axis": axis,
        "axisBand": {"grid": False},
        "legend": plain,
        "header": {"labelColor": ink, "titleColor": muted, "labelFontSize": 12},
        "mark": {"color": CATEGORIES[mode][0], "tooltip": True},
        "point": {"filled": True, "size": 60},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": ink},
        "range": {
            "category": CATEGORIES[mode],
            "diverging": DIVERGING[mode],
            "heatmap": RAMP[mode],
            "ramp": RAMP[mode],
            "ordinal": {"scheme": "viridis"},
            "symbol": SHAPES,
        },
    }


def _facets(data: pandas.DataFrame, facet: str, view: Spec, side: int) -> Spec:
    field = {"field": facet, "type": "nominal", "title": None, "sort": list(data[facet].unique())}
    return {
        "facet": field,
        "columns": 3,
        "spacing": 14,
        "spec": view | {"width": side, "height": side},
    }


def _names(name: str, data: pandas.DataFrame, **axis: Any) -> Spec:
    """A channel of names in the order of the data."""
    order = list(dict.fromkeys(data[name]))
    options = {"labelLimit": 130, **axis}
    return {"field": name, "type": "nominal", "sort": order, "title": None, "axis": options}


def _number(name: str, *, zero: bool = True) -> Spec:
    """A channel of numbers; differences have their sign."""
    is_signed = columns.unit(name) == "pts"
    axis = {"format": "+~r" if is_signed else "~r", "tickCount": 6}
    if is_signed:
        axis["labelExpr"] = "datum.value === 0 ? '0' : datum.label"
    scale = {"zero": zero, "nice": True}
    title = columns.title(name)
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _tooltip(data: pandas.DataFrame) -> list[Spec]:
    """A line for each column of a table, with the ends of an interval below its number."""
    lines, of_interval = [], {}
    for name in map(str, data):
        form = columns.CHARTS.get(columns.unit(name), "")
        for end, title in (("low", "95% from"), ("high", "to")):
            of_interval[f"{columns.base(name)}_{end}"] = title, form
    for name in map(str, data):
        title, form = of_interval.get(name, (columns.title(name), ""))
        form = form or columns.CHARTS.get(columns.unit(name), "")
        if not form and pandas.api.types.is_float_dtype(data[name]):
            form = ".4g"
        shown = {"field": name, "title": title}
        lines.append(shown | {"type": "quantitative", "format": form} if form else shown)
    return lines
