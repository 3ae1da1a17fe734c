"""The four charts of the report, as Vega-Lite: bars, a heat map, a scatter and curves.

A chart is made of a table (`columns` tells units, so axes, signs and tooltips follow from the names
of its columns) and drawn by `drawn` in the page's theme, in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from engine.report import columns, labels
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
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"]
INK = {"light": "#1b1f24", "dark": "#e8eaed"}
MUTED = {"light": "#5b646e", "dark": "#9ba4ae"}
RULE = {"light": "#e4e7ea", "dark": "#30363c"}
LEGEND = {"orient": "bottom", "columns": 4, "title": None, "symbolOpacity": 1}
COLOURS = 7  # of `CATEGORIES`
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
    rows = len(dict.fromkeys(data["method"]))
    encoding = {"y": _names("method", data), "tooltip": _tooltip(data)}
    return {"height": 24 * rows, "encoding": encoding, "layer": layers}


def heat(
    data: pandas.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    on_downstream: str = "",
    end: float | None = None,
    legend: bool = True,
) -> Spec:
    """Colours with the number in each cell: points from loss to gain, other numbers from 0 up.

    on_downstream: a column whose numbers stand, outlined, in cells of a model on the set that it
    was fine-tuned on. end: of the scale; by default from the numbers.
    """
    signed = columns.unit(value) == "pts"
    end = end or scale_end(data[value], fives=signed)
    digits = (
        max(0, min(3, 2 - math.floor(math.log10(end)))) if not signed else int(not on_downstream)
    )
    scale = {"domain": [-end, end], "domainMid": 0} if signed else {"domain": [0, end]}
    key = {"orient": "bottom", "gradientLength": 220, "gradientThickness": 8, "title": "points"}
    color = {"field": value, "type": "quantitative", "scale": scale}
    color["legend"] = key | {"format": "+~r"} if legend and signed else None
    text = {"field": value, "type": "quantitative", "format": f"{'+' * signed}.{digits}f"}
    layers: list[Spec] = [
        {"mark": {"type": "rect"}, "encoding": {"color": color}},
        {"mark": {"type": "text"}, "encoding": {"text": text}},
    ]
    if on_downstream:
        for layer in layers:
            layer["transform"] = [{"filter": f"!({OWN})"}]
        outline = {"type": "rect", "filled": False, "strokeWidth": 1, "strokeOpacity": 0.5}
        number = {"field": on_downstream, "type": "quantitative", "format": ".0f"}
        layers += [
            {"transform": [{"filter": OWN}], "mark": outline},
            {
                "transform": [{"filter": OWN}],
                "mark": {"type": "text", "fontStyle": "italic", "opacity": 0.75},
                "encoding": {"text": number},
            },
        ]
    return {
        "padding": {"left": 2, "top": 2, "bottom": 2, "right": 36},  # slanted names stick out
        "height": 26 * len(dict.fromkeys(data[y])),
        "encoding": {
            "x": _names(x, data, orient="top", labelAngle=-45, labelLimit=90),
            "y": _names(y, data),
            "tooltip": _tooltip(data),
        },
        "layer": layers,
    }


def scatter(
    data: pandas.DataFrame,
    x: str,
    y: str,
    *,
    color: str = "",
    name: str = "",
    line: str = "",
    trend: bool = False,
    facet: str = "",
    axis: Mapping[str, Any] | None = None,
) -> Spec:
    """A dot a row.

    color: a column that colour and shape tell. name: a column of names beside the dots; rows
    without one are small. line: a column; its rows of one value are a line. trend: a least-squares
    line. facet: a column with a panel for each value, whose rows with a `kind` of "line" are a
    dashed line and of "given" are rings. axis: of both axes, where they are no plain numbers.
    """
    channels: dict[str, Any] = {"x": _number(x, zero=False), "y": _number(y, zero=False)}
    if axis:
        channels = {k: v | {"axis": dict(axis)} for k, v in channels.items()}
        for channel in channels.values():
            channel["scale"] = {"zero": False, "nice": False, "padding": 8}
    marked: Spec = {}
    if color:
        group = {"field": color, "type": "nominal", "sort": None, "legend": LEGEND}
        marked = {"color": group, "shape": group}
    tooltip = {"tooltip": _tooltip(data)}
    layers: list[Spec] = []
    if facet:
        thin = {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.2}
        ring = {"type": "point", "filled": False, "size": 24, "opacity": 0.6}
        dot = {"type": "point", "size": 34, "opacity": 0.8}
        kinds = {"line": (thin, {}), "given": (ring, {}), "model": (dot, marked | tooltip)}
        layers += [
            {
                "transform": [{"filter": f"datum.kind === '{kind}'"}],
                "mark": mark,
                "encoding": encoding,
            }
            for kind, (mark, encoding) in kinds.items()
            if kind in set(data["kind"])  # Vega warns of a layer without rows
        ]
        return _facets(data, facet, {"encoding": channels, "layer": layers}, 190, own_x=True)
    if trend:
        layers.append(
            {
                "transform": [{"regression": y, "on": x}],
                "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.5, "tooltip": None},
            }
        )
    if line:
        steps = [{"filter": f"datum.{line} !== null"}]
        drawn = {"color": {"field": line, "type": "nominal", "sort": None, "legend": None}}
        layers += [
            {
                "transform": steps,
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": drawn | {"order": {"field": "alpha"}},
            },
            {"transform": steps, "mark": {"type": "point", "size": 28}, "encoding": tooltip},
        ]
    named = [{"filter": f"datum.{name} !== ''"}] if name else []
    dot = {"type": "point", "size": 60} if name else {"type": "point", "size": 34, "opacity": 0.8}
    layers.append({"transform": named, "mark": dot, "encoding": marked | tooltip})
    if name:
        layers += labels.layers(data, x, y, name, line)
    return {"height": 340, "encoding": channels, "layer": layers}


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
    numeric = pandas.api.types.is_numeric_dtype(data[x])
    place: Spec = {"field": x, "type": "ordinal", "sort": None, "title": x_title}
    if numeric:
        axis: Spec = {"grid": False, "format": "~g", "labelOverlap": True}
        if ticks:
            texts = " : ".join(f"datum.value === {k!r} ? '{v}'" for k, v in ticks.items())
            axis |= {"values": list(ticks), "labelExpr": f"{texts} : datum.label"}
        scale = {"type": "log", "nice": False} if log else {"zero": False, "nice": False}
        place |= {"type": "quantitative", "scale": scale | {"padding": 12}, "axis": axis}
    low, high = (f"{columns.base(y)}_{end}" for end in ("low", "high"))
    number = _number(y, zero=columns.unit(y) == "pts")
    encoding: Spec = {"x": place}
    if color:
        many = pandas.api.types.is_float_dtype(data[color]) and data[color].nunique() > COLOURS
        kind = "quantitative" if many else "nominal"
        encoding["color"] = {"field": color, "type": kind, "sort": None, "legend": LEGEND}
        if not numeric:
            encoding["xOffset"] = {"field": detail or color}
    if detail:
        encoding["detail"] = {"field": detail}
    band = {"type": "area", "opacity": 0.15, "tooltip": False} if numeric else {"type": "rule"}
    mark = {"type": "line", "point": {"size": 30}} if numeric else {"type": "point"}
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


def chosen(spec: Spec, data: pandas.DataFrame, names: Sequence[str]) -> Spec:
    """The chart of the rows that a reader chooses, by these columns."""
    params = []
    for name in names:
        options = list(dict.fromkeys(data[name]))
        bind = {"input": "select", "options": options, "name": f"{name} "}
        params.append({"name": f"chosen_{name}", "value": options[0], "bind": bind})
    rows = " && ".join(f"datum.{name} === chosen_{name}" for name in names)
    return {"params": params, "transform": [{"filter": rows}], **spec}


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
            "symbol": SHAPES,
        },
    }


def _facets(
    data: pandas.DataFrame, facet: str, view: Spec, side: int, *, own_x: bool = False
) -> Spec:
    field = {"field": facet, "type": "nominal", "title": None, "sort": list(data[facet].unique())}
    spec: Spec = {"facet": field, "columns": 3, "spacing": 14}
    if own_x:
        spec["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    return spec | {"spec": view | {"width": side, "height": side}}


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
