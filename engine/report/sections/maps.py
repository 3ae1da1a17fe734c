"""Where fine-tuning helps and where it hurts: every set fine-tuned on by every set evaluated on."""

from __future__ import annotations

from typing import Any

import pandas

from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.specs import Spec
from engine.report.tables import Results

SMALL_MULTIPLES = 12  # maps side by side at most; of more, a reader chooses one
TOOLTIP = [
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("evaluated_on", "evaluated on"),
    specs.field("change", "change, points", "+.2f"),
    specs.field("before", "before, %", ".2f"),
    specs.field("accuracy", "after, %", ".2f"),
    specs.field("accuracy_low", "95% from", ".2f"),
    specs.field("accuracy_high", "to", ".2f"),
]


def section(results: Results) -> Section | None:
    data = frames.cells(results)
    if data.empty:
        return None
    end = frames.scale_end(data.query("downstream != evaluated_on")["change"])
    maps = list(dict.fromkeys(zip(data["model"], data["method"], strict=True)))
    figures = [_chosen(data, len(maps), end)]
    if len(maps) <= SMALL_MULTIPLES:
        figures = [
            _map(number, model, method, data, end) for number, (model, method) in enumerate(maps, 1)
        ]
    holdout = "its hold-out" if results.record.holdout else "its training images (no hold-out)"
    diagonal = bool((data["downstream"] == data["evaluated_on"]).any())
    return Section(
        "maps",
        "Where it helps and where it hurts",
        "Rows: the set fine-tuned on. Columns: the set evaluated on, the upstream set last. Change "
        "in accuracy against the pre-trained model, in points; colours end at "
        f"{end:.0f} points."
        + f" The outlined diagonal is accuracy in percent on {holdout}."
        * diagonal,
        figures=figures,
        tables=[
            Table(
                "cells",
                "Every cell: accuracy in percent before and after, and the change in points.",
                data,
                {"before": "plain1", "accuracy": "span", "change": "signed1"},
            )
        ],
    )


def _map(number: int, model: str, method: str, data: pandas.DataFrame, end: float) -> Figure:
    rows = frames.where(data, model=model, method=method)
    worst, best = frames.extremes(rows.query("downstream != evaluated_on"), "change")
    several = len(set(data["model"])) > 1
    return Figure(
        frames.slug("map", f"{number:02}", method),
        f"{method}{f', {model}' if several else ''}",
        f"{method}: change in accuracy from {worst['change']:+.1f} (on {worst['evaluated_on']} "
        f"after {worst['downstream']}) to {best['change']:+.1f} (on {best['evaluated_on']} after "
        f"{best['downstream']}).",
        rows.drop(columns=["variant"]),
        _spec(data, end),
    )


def _chosen(data: pandas.DataFrame, count: int, end: float) -> Figure:
    """All maps as one figure, of which a reader chooses one by model and method."""
    params: list[dict[str, Any]] = []
    for name in ("model", "method"):
        options = list(dict.fromkeys(data[name]))
        bind = {"input": "select", "options": options, "name": f"{name} "}
        params.append({"name": f"chosen_{name}", "value": options[0], "bind": bind})
    chosen = "datum.model === chosen_model && datum.method === chosen_method"
    return Figure(
        "map",
        "The map of the model and method that are chosen above.",
        f"A heat map for each of {count} pairs of model and method; the table below holds all "
        "of their numbers.",
        data.drop(columns=["variant"]),
        {"params": params, "transform": [{"filter": chosen}], **_spec(data, end)},
    )


def _spec(data: pandas.DataFrame, end: float) -> Spec:
    """A heat map whose diagonal, the sets fine-tuned on, is outlined and holds accuracies."""
    rows = list(dict.fromkeys(data["downstream"]))
    columns = [*rows, *(name for name in dict.fromkeys(data["evaluated_on"]) if name not in rows)]
    spec = specs.heat_map(
        "evaluated_on",
        "downstream",
        "change",
        end,
        TOOLTIP,
        columns=columns,
        rows=rows,
        text_format="+.0f",
        step=24,
    )
    diagonal = "datum.downstream === datum.evaluated_on"
    for layer in spec["layer"]:
        layer["transform"] = [{"filter": f"!({diagonal})"}]
    number = {"field": "accuracy", "type": "quantitative", "format": ".0f"}
    outline = {"type": "rect", "filled": False, "strokeWidth": 1, "strokeOpacity": 0.5}
    spec["layer"] += [
        {"transform": [{"filter": diagonal}], "mark": outline},
        {
            "transform": [{"filter": diagonal}],
            "mark": {"type": "text", "fontStyle": "italic", "opacity": 0.75},
            "encoding": {"text": number},
        },
    ]
    return spec
