"""Vega-Lite specifications that several sections draw with: bars, heat maps, tooltips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]


def field(name: str, title: str | None = None, format: str = "") -> Spec:
    """A line of a tooltip, or a channel's field: numbers with a format, all else as it is."""
    shown = {"field": name, "title": title or name.replace("_", " ")}
    return shown | {"type": "quantitative", "format": format} if format else shown


def axis_of_names(name: str, order: Sequence[str] | None = None, **axis: Any) -> Spec:
    """A channel of names, in this order or else in that of the data."""
    sort = None if order is None else list(order)
    options = {"labelLimit": 130, **axis}
    return {"field": name, "type": "nominal", "sort": sort, "title": None, "axis": options}


def number(name: str, title: str | None, *, zero: bool = True, format: str = "+~r") -> Spec:
    """A channel of numbers; of changes, which are shown with their sign, by default."""
    scale = {"zero": zero, "nice": True}
    axis = {"format": format, "tickCount": 6}
    if format.startswith("+"):
        axis["labelExpr"] = "datum.value === 0 ? '0' : datum.label"
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def bars(value: str, title: str, tooltip: Sequence[Spec], *, names: str = "method") -> Spec:
    """A bar from zero for each name, with a whisker from VALUE_low to VALUE_high."""
    y = axis_of_names(names)
    whisker = {"field": f"{value}_low", "type": "quantitative"}
    return {
        "height": {"step": 24},
        "encoding": {"y": y, "tooltip": list(tooltip)},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.62}, "opacity": 0.85},
                "encoding": {"x": number(value, title)},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": whisker, "x2": {"field": f"{value}_high"}},
            },
        ],
    }


def heat_map(
    x: str,
    y: str,
    value: str,
    end: float,
    tooltip: Sequence[Spec],
    *,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    text_format: str = "+.1f",
    legend: bool = False,
    step: int = 26,
) -> Spec:
    """Changes as colours from -end (loss) to end (gain), with the number in each cell.

    columns, rows: the order of the names on each axis, where it is not that of the data.
    """
    key = {"orient": "bottom", "gradientLength": 220, "gradientThickness": 8, "format": "+~r"}
    return {
        "padding": {"left": 2, "top": 2, "bottom": 2, "right": 36},  # slanted names stick out
        "height": {"step": step},
        "encoding": {
            "x": axis_of_names(x, columns, orient="top", labelAngle=-45, labelLimit=90),
            "y": axis_of_names(y, rows),
            "tooltip": list(tooltip),
        },
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "color": {
                        "field": value,
                        "type": "quantitative",
                        "scale": {"domain": [-end, end], "domainMid": 0},
                        "legend": key | {"title": "points"} if legend else None,
                    }
                },
            },
            {
                "mark": {"type": "text"},
                "encoding": {
                    "text": {"field": value, "type": "quantitative", "format": text_format}
                },
            },
        ],
    }


def named_points(sides: Mapping[str, Sequence[str]], name: str) -> list[Spec]:
    """A layer of names for each side of their points (`labels.sides`)."""
    places = {
        "right": {"align": "left", "baseline": "middle", "dx": 9},
        "left": {"align": "right", "baseline": "middle", "dx": -9},
        "above": {"align": "center", "baseline": "bottom", "dy": -8},
        "below": {"align": "center", "baseline": "top", "dy": 8},
    }
    return [
        {
            "transform": [{"filter": {"field": name, "oneOf": list(names)}}],
            "mark": {"type": "text", **places[side]},
            "encoding": {"text": {"field": name, "type": "nominal"}},
        }
        for side, names in sides.items()
        if names
    ]
