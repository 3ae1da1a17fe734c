"""The variants of a sweep: mRI against what varies, and which variant may be chosen.

mRI is measured on the sets that a choice must not see, so no variant is called best by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas

from engine.measures.standings import counted, signed
from engine.report import frames, specs, sweep_rows
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

MOST_TICKS, MOST_COLOURS = 12, 7
SELECTION = (
    "mRI is measured on the test sets. To pick the variant with the highest mRI is selection on "
    "the test sets, so this report calls none the best."
)
NO_HOLDOUT = (
    "Nothing is held out of the sets fine-tuned on, so no accuracy is left to choose a variant by; "
    "dataset.holdout=0.25 with evaluate.split=holdout keeps a quarter of each set apart."
)


def section(results: Results) -> Section | None:
    """None where the campaign is no sweep."""
    if results.record.sweep is None:
        return None
    data, chosen = sweep_rows.summary(results), sweep_rows.choices(results)
    keys = _keys(results)
    seeds = len(results.grid.seeds)
    means = f" Numbers are means over {seeds} seeds." if seeds > 1 else ""
    statements = [SELECTION, NO_HOLDOUT if chosen.empty else _of_choice(chosen)]
    judged = "on_downstream_set" in data
    formats = {name: "signed1" for name in map(str, data) if name.startswith("RI ")}
    tables = [
        Table(
            "sweep-variants",
            "Every variant, in the order of the sweep: mRI with its 95% interval and RI by set "
            "fine-tuned on, in points"
            + ("; mean accuracy on the set fine-tuned on, in percent." if judged else "."),
            data,
            {"mRI": "interval", **formats, **({"on_downstream_set": "plain1"} if judged else {})},
        )
    ]
    if not chosen.empty:
        tables.append(
            Table(
                "sweep-choices",
                "By set fine-tuned on, the variant with the highest accuracy on that set's "
                "held-out images (of equal ones the first), and its RI in points.",
                chosen,
                {"held_out_accuracy": "plain1", "RI": "signed1"},
            )
        )
    return Section(
        "sweep",
        "The variants of the sweep",
        f"{counted('variant', len(data))} of {title(results)}"
        + (f", every combination of {', '.join(keys)}" if keys else "")
        + f", each fine-tuned on {counted('set', len(results.record.downstreams))}.{means}",
        statements=statements,
        figures=[_figure(results, data, keys)] if keys else [],
        tables=tables,
    )


def title(results: Results) -> str:
    """The title of the row that a sweep varies."""
    (name,) = results.record.methods.values()
    return name


def _keys(results: Results) -> list[str]:
    """The varied keys with several values; a seed is none."""
    settings = list(sweep_rows.variants(results).values())
    return [key for key in settings[0] if len({values[key] for values in settings}) > 1]


def _of_choice(chosen: pandas.DataFrame) -> str:
    return (
        "Chosen for each set by accuracy on the held-out images of the set fine-tuned on, which RI "
        f"does not count, variants have a mean RI of {signed(sweep_rows.mean_ri(chosen))} points."
    )


def _figure(results: Results, summary: pandas.DataFrame, keys: Sequence[str]) -> Figure:
    """mRI against the first numeric key, a colour for each value of the next."""
    x = next((key for key in keys if _is_numeric(key, summary[key])), keys[0])
    rest = [key for key in keys if key != x]
    color, *more = rest or [""]
    data = pandas.DataFrame(
        {
            "variant": [_words(row, keys) for row in summary.to_dict("records")],
            "x": summary[x],
            **({"color": summary[color]} if color else {}),
            "line": [_words(row, rest) for row in summary.to_dict("records")],
            **{name: summary[name] for name in ("mRI", "mRI_low", "mRI_high")},
        }
    )
    low, high = frames.extremes(data, "mRI")
    return Figure(
        frames.slug("sweep", results.models[0].model),
        f"mRI of each variant in points against {x}, with its 95% interval"
        + (f"; a colour for each {color}" if color else "")
        + (f"; a line for each {', '.join(more)}" if more else "")
        + ". It is measured on the test sets, by which no variant may be chosen.",
        f"mRI by {', '.join(keys)}: from {signed(low['mRI'])} ({low['variant']}) to "
        f"{signed(high['mRI'])} ({high['variant']}).",
        data,
        _spec(data, x, color, summary[x]),
    )


def _spec(data: pandas.DataFrame, x: str, color: str, values: pandas.Series) -> specs.Spec:
    y = specs.number("mRI", "mRI, points")
    numeric = _is_numeric(x, values)
    axis: dict[str, Any] = {"field": "x", "type": "ordinal", "sort": None, "title": x}
    if numeric:
        distinct = sorted(set(values))
        is_log = distinct[0] > 0 and distinct[-1] / distinct[0] > 10 * (1 + 1e-9)
        scale = {"type": "log", "nice": False} if is_log else {"zero": False, "nice": False}
        ticks = {"values": distinct} if len(distinct) <= MOST_TICKS else {}
        axis = {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "scale": scale | {"padding": 12},
            "axis": {"format": "~g", "grid": False, **ticks},
        }
    tooltip = [
        specs.field("variant"),
        specs.field("mRI", format="+.2f"),
        specs.field("mRI_low", "95% from", "+.2f"),
        specs.field("mRI_high", "to", "+.2f"),
    ]
    ends = {"y": y | {"field": "mRI_low"}, "y2": {"field": "mRI_high"}}
    encoding: dict[str, Any] = {"x": axis, "detail": {"field": "line"}}
    if color:
        many = _is_numeric(color, data["color"]) and data["color"].nunique() > MOST_COLOURS
        kind = "quantitative" if many else "nominal"
        legend = {"title": color, "symbolOpacity": 1}
        encoding["color"] = {"field": "color", "type": kind, "sort": None, "legend": legend}
    interval = {"type": "area", "opacity": 0.15, "tooltip": False} if numeric else {"type": "rule"}
    mark = {"type": "line", "point": True} if numeric else {"type": "point"}
    if color and not numeric:
        encoding["xOffset"] = {"field": "line"}
    return {
        "height": 280,
        "encoding": encoding,
        "layer": [
            {"mark": interval, "encoding": ends},
            {"mark": mark, "encoding": {"y": y, "tooltip": tooltip}},
        ],
    }


def _is_numeric(key: str, values: pandas.Series) -> bool:
    """Whether values lie on an axis of numbers; 0 shots are all images, and so no number."""
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return plain and all(math.isfinite(v) and (v or key != "dataset.shots") for v in values)


def _words(row: dict[Any, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in keys)
