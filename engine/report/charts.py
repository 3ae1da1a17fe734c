"""The report's figures by model, and its charts in Vega-Lite: bars, heat map, scatter, curves.

Axes, signs and tooltips follow from the names of a table's columns (`columns`). `CONFIG` styles all
charts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas

from engine.measures.rows import UNION
from engine.measures.tables import csv, groups, with_ends
from engine.report import columns
from engine.report.results import Results
from engine.report.section import Figure
from engine.report.text import slug

Spec = dict[str, Any]
DIGITS = "%.8g"  # of a float in a file
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
INK, MUTED, RULE = "#1b1f24", "#5b646e", "#e4e7ea"
# Okabe and Ito's palette for colour-blind readers, with a darker yellow.
CATEGORIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6f00", "#56b4e9", "#e69f00"]
# Loss is orange, gain is blue. Text has a contrast above 4.5 on both ends, also in dark mode, where
# the page inverts figures and rotates hues back. The middle is a pure grey, so colours in between
# pass through no other hue.
DIVERGING = ["#e5a56d", "#f0cfb1", "#f9f9f9", "#bcd5ec", "#80b2df"]
RAMP = ["#f9f9f9", "#80b2df"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"]  # 5 by 7 colours are 35 pairs
LEGEND = {"orient": "bottom", "columns": 3, "title": None, "symbolOpacity": 1}
WORDS = {"labelColor": MUTED, "titleColor": MUTED, "titleFontWeight": "normal"}
HEIGHT, LEAST_WIDTH = 340, 420  # of a scatter, in pixels; names need more than this width
DOT, LETTER = 6, 6.5  # pixels: half of a dot's or a name's height, and the width of a letter
NAMES: Mapping[str, Spec] = {  # where a dot's name may be, the best place first
    "right": {"dx": 9, "align": "left"},
    "left": {"dx": -9, "align": "right"},
    "above": {"dy": -13},
    "below": {"dy": 13},
}
# Vega-Lite's config of every figure.
CONFIG: Spec = {
    "background": None,
    "font": FONT,
    "padding": 2,
    "view": {"stroke": None, "continuousHeight": 260},
    "axis": {
        **WORDS,
        "gridColor": RULE,
        "domain": False,
        "ticks": False,
        "labelFontSize": 11,
        "labelLimit": 130,
        "labelPadding": 6,
        "titleFontSize": 12,
        "titlePadding": 8,
    },
    "axisTop": {"labelLimit": 90},  # where names slant
    "legend": WORDS,
    "header": {"labelColor": INK, "titleColor": MUTED, "labelFontSize": 12},
    "mark": {"color": CATEGORIES[0], "tooltip": True},
    "point": {"filled": True, "size": 60},
    "text": {"color": INK, "fontSize": 11},
    "rule": {"color": INK},
    "range": {
        "category": CATEGORIES,
        "diverging": DIVERGING,
        "heatmap": RAMP,
        "ramp": RAMP,
        "ordinal": {"scheme": "viridis"},
        "symbol": SHAPES,
    },
}
# a model on a set that it was fine-tuned on
OWN = f"indexof(split(datum.downstream, '{UNION}'), datum.evaluated_on) >= 0"


def by_model(
    results: Results,
    name: str,
    caption: str,
    data: pandas.DataFrame,
    column: tuple[str, ...],
    draw: Callable[[pandas.DataFrame], Spec] | None = None,
) -> list[Figure]:
    """One figure per `model`, drawn without that column, by default as bars. Its alternative text
    is the caption with the minimum and maximum of `column`: a number's column, followed by columns
    that name a row."""
    figures = []
    for model, rows in groups(data, "model"):
        shown = rows.drop(columns="model")
        title = f"{model}: {caption}" if len(results.models) > 1 else caption
        words = f"{title}: from {columns.between(shown, *column)}."
        spec = draw(shown) if draw else bars(shown, column[0])
        figures.append(Figure(slug(name, model), f"{title}.", words, shown, spec))
    return figures


def bars(data: pandas.DataFrame, value: str) -> Spec:
    """One bar per method, starting at zero, with a whisker for its interval, and on the right the
    column `letters`, if there is one."""
    _, low, high = with_ends(value)
    ends = {"x": {"field": low, "type": "quantitative"}, "x2": {"field": high}}
    bar = {"type": "bar", "height": {"band": 0.62}, "opacity": 0.85}
    layers: list[Spec] = [
        {"mark": bar, "encoding": {"x": _number(value)}},
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": ends},
    ]
    if "letters" in data:
        text = {"text": {"field": "letters"}, "x": {"value": "width"}}
        layers.append({"mark": {"type": "text", "align": "left", "dx": 8}, "encoding": text})
    return {
        "height": 24 * data["method"].nunique(),
        "encoding": {"y": _names("method", data), "tooltip": _tooltip(data)},
        "layer": layers,
    }


def heat(
    data: pandas.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    on_downstream: str = "",
    end: float | None = None,
) -> Spec:
    """A heat map with the number in each cell: points from loss to gain, other numbers from 0.

    on_downstream: a column whose numbers are shown, outlined, in cells of a model on its downstream
    dataset. end: of a scale of points; by default from the numbers.
    """
    signed = columns.unit(value) == "pts"
    end = end or scale_end(data[value])
    scale = {"domain": [-end, end], "domainMid": 0} if signed else {"zero": True, "nice": False}
    color = {"field": value, "type": "quantitative", "scale": scale, "legend": None}
    text = {"field": value, "type": "quantitative", "format": "+.1f" if signed else ".3~r"}
    room = 30 * data[x].nunique()  # pixels below which numbers of neighbouring cells touch
    number = {"type": "text", "opacity": {"expr": f"width < {room} ? 0 : 1"}}
    layers: list[Spec] = [
        {"mark": {"type": "rect"}, "encoding": {"color": color}},
        {"mark": {**number, "fontSize": 11 if signed else 9}, "encoding": {"text": text}},
    ]
    if on_downstream:
        text["format"] = "+.0f"
        accuracy = {"field": on_downstream, "type": "quantitative", "format": ".0f"}
        outline = {"type": "rect", "filled": False, "strokeWidth": 1, "strokeOpacity": 0.5}
        italic = {**number, "fontStyle": "italic"}
        layers = [layer | {"transform": [{"filter": f"!({OWN})"}]} for layer in layers] + [
            {"transform": [{"filter": OWN}], "mark": outline},
            {"transform": [{"filter": OWN}], "mark": italic, "encoding": {"text": accuracy}},
        ]
    return {
        "padding": {"left": 2, "top": 2, "bottom": 2, "right": 36},  # room for slanted names
        "height": 26 * data[y].nunique(),
        "encoding": {
            "x": _names(x, data, orient="top", labelAngle=-45),
            "y": _names(y, data),
            "tooltip": _tooltip(data),
        },
        "layer": layers,
    }


def scatter(
    data: pandas.DataFrame, x: str, y: str, color: str, *, curve: str = "", facet: str = ""
) -> Spec:
    """One dot per row with a value in the column `color`, which determines colour and shape. Dots
    are named where there is room and no two share a name.

    curve: a column whose values group rows into lines of small dots, in the order of `alpha`.
    facet: a column with one panel per value.
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
    if facet:
        return _facets(data, facet, view, 190)
    dots = data[data[color] != ""]
    if dots[color].duplicated().any():
        return {"height": HEIGHT, **view}
    name = {"type": "text", "opacity": {"expr": f"width > {LEAST_WIDTH} ? 1 : 0"}}
    text = {"text": {"field": color}}
    for place, names in _named(dots, x, y, color).items():
        shown = [{"filter": {"field": color, "oneOf": names}}]
        layers.append({"transform": shown, "mark": name | NAMES[place], "encoding": text})
    return {"height": HEIGHT, **view}


def curve(
    data: pandas.DataFrame,
    x: str,
    y: str,
    color: str,
    *,
    x_title: str = "",
    ticks: Mapping[float, str] | None = None,
    facet: str = "",
) -> Spec:
    """One line per value of `color`, with its interval as a band.

    ticks: labels of a logarithmic x axis, by position. facet: a column with one panel per value if
    it has several.
    """
    axis: Spec = {"grid": False, "format": "~g", "labelOverlap": True}
    scale: Spec = {"zero": False, "nice": False, "padding": 12}
    if ticks:
        scale = {"type": "log", "nice": False, "padding": 12}
        texts = " : ".join(f"datum.value === {k!r} ? '{v}'" for k, v in ticks.items())
        axis |= {"values": list(ticks), "labelExpr": f"{texts} : datum.label"}
    kind = "ordinal" if data[color].nunique() > len(CATEGORIES) else "nominal"
    encoding: Spec = {
        "x": {"field": x, "type": "quantitative", "title": x_title, "scale": scale, "axis": axis},
        "color": {"field": color, "type": kind, "sort": None, "legend": LEGEND},
    }
    number = _number(y, zero=columns.unit(y) == "pts")
    _, low, high = with_ends(y)
    layers: list[Spec] = []
    if low in data:
        ends = {"y": number | {"field": low}, "y2": {"field": high}}
        band = {"type": "area", "opacity": 0.15, "tooltip": False}
        layers.append({"mark": band, "encoding": ends})
    line = {"type": "line", "point": {"size": 30}}
    layers.append({"mark": line, "encoding": {"y": number, "tooltip": _tooltip(data)}})
    view = {"encoding": encoding, "layer": layers}
    if facet and data[facet].nunique() > 1:
        return _facets(data, facet, view, 230)
    return {"height": 300, **view}


def scale_end(values: pandas.Series) -> float:
    """End of a colour scale of points: the largest absolute value, rounded up to fives."""
    largest = float(values.abs().max()) if values.notna().any() else 0.0
    return max(1, math.ceil(largest / 5)) * 5.0


def drawn(figure: Figure, width: int | str) -> Spec:
    """The chart with its data as CSV, and with this width unless it has panels."""
    is_number = pandas.api.types.is_numeric_dtype
    types = {name: "number" if is_number(of) else "string" for name, of in figure.data.items()}
    data = {"values": csv(figure.data, DIGITS), "format": {"type": "csv", "parse": types}}
    return {"data": data, **figure.spec, **({} if "facet" in figure.spec else {"width": width})}


def _named(dots: pandas.DataFrame, x: str, y: str, name: str) -> dict[str, list[str]]:
    """The names by their place beside their dots: the first place of `NAMES` where a name covers no
    dot and no name before it. A name without such a place is left out: the legend has it."""
    places = dots[[x, y]].to_numpy(float) * (1, -1)  # pixels count down
    scaled = (places - places.min(axis=0)) / np.maximum(np.ptp(places, axis=0), 1e-9)
    pixels = scaled * (LEAST_WIDTH, HEIGHT)
    taken = [(at - DOT, at + DOT) for at in pixels]
    named: dict[str, list[str]] = {place: [] for place in NAMES}
    for at, text in zip(pixels, dots[name], strict=True):
        size = np.array([LETTER * len(text), 2 * DOT])
        for place, mark in NAMES.items():
            offset = np.array([mark.get("dx", 0), mark.get("dy", 0)])
            middle = at + offset + np.sign(offset) * size * (0.5, 0)
            low, high = middle - size / 2, middle + size / 2
            if not any((low < end).all() and (begin < high).all() for begin, end in taken):
                taken.append((low, high))
                named[place].append(text)
                break
    return {place: names for place, names in named.items() if names}


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
    return {"field": name, "type": "nominal", "sort": order, "title": None, "axis": axis}


def _number(name: str, *, zero: bool = True) -> Spec:
    """A channel of numbers; differences have their sign."""
    is_signed = columns.unit(name) == "pts"
    axis = {"format": "+~r" if is_signed else "~r", "tickCount": 6}
    if is_signed:
        axis["labelExpr"] = "datum.value === 0 ? '0' : datum.label"
    number = {"field": name, "type": "quantitative", "title": columns.title(name)}
    return number | {"scale": {"zero": zero}, "axis": axis}


def _tooltip(data: pandas.DataFrame) -> list[Spec]:
    """One line per column of a table, with the bounds of an interval below its number."""
    lines, ends = [], columns.ends(data)
    for name in map(str, data):
        number, title = ends.get(name, (name, columns.title(name)))
        line: Spec = {"field": name, "title": title}
        unit = columns.unit(number)
        if unit or pandas.api.types.is_float_dtype(data[name]):
            line |= {"type": "quantitative", "format": columns.UNITS[unit].chart}
        lines.append(line)
    return lines
