"""Sections that draw methods against a key that a campaign varies: mRI and downstream accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from engine.measures import parts
from engine.measures.parts import Point
from engine.measures.standings import signed
from engine.report import display, frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

MRI, DOWNSTREAM = "mRI", "on_downstream_set"
FINE_TUNE = "fine_tune"


@dataclass(frozen=True)
class Varied:
    """A key that a campaign varies, and the words for it.

    name: of the section and its files. axis: the title of the x axis. at: a value in a sentence,
    as in `at {value} image a class`. claim: what the sources say of the smallest value.
    """

    key: str
    name: str
    heading: str
    text: str
    axis: str
    at: str
    claim: str


def section(results: Results, varied: Varied) -> Section | None:
    """Curves of every method against the key, or None where the campaign does not vary it."""
    points = parts.points(results.grid, results.summary.mri, varied.key)
    if not points:
        return None
    data = pandas.DataFrame([_row(results, point) for point in points])
    largest = max((p.value for p in points if math.isfinite(p.value)), default=1.0)
    # A logarithmic axis has no place for "all": it stands a doubling after the largest number.
    data["x"] = [p.value if math.isfinite(p.value) else 2 * largest for p in points]
    models = list(dict.fromkeys(data["model"]))
    judged = DOWNSTREAM in data
    return Section(
        varied.name,
        varied.heading,
        varied.text,
        statements=_statements(points, varied),
        figures=[
            figure
            for model in models
            for figure in _figures(data[data["model"] == model], varied, len(models) > 1)
        ],
        tables=[
            Table(
                varied.name,
                f"mRI in points{' and accuracy on the set fine-tuned on, in percent,' * judged} by "
                f"{varied.axis}, with 95% intervals.",
                data.drop(columns="x"),
                {MRI: "interval"} | ({DOWNSTREAM: "span"} if judged else {}),
            )
        ],
    )


def _row(results: Results, point: Point) -> dict[str, Any]:
    mri, ends = point.mri, point.downstream_ends
    row = {
        "model": point.arm.model,
        "method": _title(results, point),
        "value": f"{point.value:g}" if math.isfinite(point.value) else "all",
        MRI: mri.mri,
        f"{MRI}_low": mri.mri_low,
        f"{MRI}_high": mri.mri_high,
    }
    if ends is None:
        return row
    return row | {
        DOWNSTREAM: point.downstream,
        f"{DOWNSTREAM}_low": ends[0],
        f"{DOWNSTREAM}_high": ends[1],
    }


def _title(results: Results, point: Point) -> str:
    """The method's title with what distinguishes its curve from another of the same method."""
    arm = point.arm
    variant = "" if arm.variant in ("", "canonical") else f" ({arm.variant})"
    return ", ".join(
        filter(None, [results.record.methods.get(arm.method, arm.method) + variant, point.rest])
    )


def _statements(points: Sequence[Point], varied: Varied) -> list[str]:
    """The claim about the smallest value, for each pre-trained model that plain FT was run from."""
    tuned = [point for point in points if point.arm.method == FINE_TUNE and not point.rest]
    first: dict[tuple[str, str], Point] = {}
    for point in sorted(tuned, key=lambda point: point.value):
        first.setdefault((point.arm.model, point.arm.variant), point)
    statements = []
    for point in first.values():
        if not math.isfinite(point.value):
            continue
        mri, holds = point.mri, point.mri.mri_high < 0
        ends = display.range_text(mri.mri_low, mri.mri_high)
        where = "below 0" if holds else "above 0" if mri.mri_low > 0 else "not surely below 0"
        on_target = (
            ""
            if point.downstream is None
            else f"; accuracy on the set fine-tuned on is {point.downstream:.1f}%"
        )
        statements.append(
            f"{varied.claim}: {str(holds).lower()} for {point.arm.model} in this run. "
            f"{varied.at.format(value=f'{point.value:g}')}, fine-tuning has an mRI of "
            f"{signed(mri.mri)} (95% interval {ends}), which is {where}{on_target}."
        )
    return statements


def _figures(data: pandas.DataFrame, varied: Varied, several: bool) -> list[Figure]:
    """mRI and downstream accuracy of a pre-trained model against the key."""
    model = data["model"].iloc[0]
    of_model = f" of {model}" if several else ""
    figures = []
    for quantity, title, form in (
        (MRI, "mRI, points", "+.1f"),
        (DOWNSTREAM, "accuracy on the set fine-tuned on, %", ".1f"),
    ):
        if quantity not in data:
            continue
        ends = data.groupby("method", sort=False)[quantity].agg(["first", "last"])
        numbers = "; ".join(f"{m} from {a:{form}} to {b:{form}}" for m, a, b in ends.itertuples())
        figures.append(
            Figure(
                frames.slug(varied.name, quantity, model),
                f"{title.partition(',')[0]} by {varied.axis}{of_model}, a line a method, with 95% "
                "intervals as bands." + " “all” is every training image." * _has_all(data),
                f"{title} against {varied.axis}{of_model}: {numbers}.",
                data,
                _spec(data, quantity, title, varied.axis),
            )
        )
    return figures


def _has_all(data: pandas.DataFrame) -> bool:
    return "all" in set(data["value"])


def _spec(data: pandas.DataFrame, quantity: str, title: str, x_title: str) -> specs.Spec:
    """A line and a band a method, on a logarithmic x axis labelled at the values that were run."""
    values = sorted(set(data["x"]))
    axis: dict[str, Any] = {"values": values, "format": "~g", "grid": False}
    if _has_all(data):
        axis["labelExpr"] = f"datum.value === {values[-1]:g} ? 'all' : datum.label"
    signs = "+~r" if quantity == MRI else "~r"
    y = specs.number(quantity, title, zero=quantity == MRI, format=signs)
    tooltip = [
        specs.field("method"),
        specs.field("value", x_title),
        specs.field(quantity, title, ".2f"),
        specs.field(f"{quantity}_low", "95% from", ".2f"),
        specs.field(f"{quantity}_high", "to", ".2f"),
    ]
    return {
        "height": 280,
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": x_title,
                "scale": {"type": "log", "nice": False, "padding": 12},
                "axis": axis,
            },
            "color": specs.axis_of_names("method")
            | {
                "axis": None,
                "legend": {"title": None, "symbolOpacity": 1},
            },
        },
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15, "tooltip": False},
                "encoding": {
                    "y": y | {"field": f"{quantity}_low"},
                    "y2": {"field": f"{quantity}_high"},
                },
            },
            {
                "mark": {"type": "line", "point": True},
                "encoding": {"y": y, "tooltip": tooltip},
            },
        ],
    }
