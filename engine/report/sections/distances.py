"""How far sets are apart, and whether fine-tuning on a far one forgets more."""

from __future__ import annotations

import math

import numpy as np
import pandas

from engine.measures.distances import Matrix
from engine.report import forgetting, frames, labels, specs
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

TOOLTIP = [
    specs.field("set"),
    specs.field("distance", format=".4g"),
    specs.field("drop", "drop upstream, points", ".2f"),
]
PAIR = [
    specs.field("set", "from"),
    specs.field("other", "to"),
    specs.field("distance", format=".6g"),
    specs.field("gap", format=".1e"),
    specs.field("marginal_error", format=".1e"),
]


def section(results: Results) -> Section | None:
    matrix = results.record.matrix()
    if matrix is None or len(results.models) != 1:
        return None
    upstream = results.record.upstream
    points = forgetting.points(results.models[0], matrix.row(upstream), upstream)
    statements = [forgetting.statement(points)] if points else []
    scatter = [_scatter(points, upstream, *statements)] if points else []
    return Section(
        "distances",
        "Is what is far forgotten more?",
        _text(matrix),
        statements,
        [*scatter, _map(matrix)],
        [_table(matrix)],
    )


def of_matrix(matrix: Matrix) -> Section:
    """The section of distances alone."""
    return Section(
        "distances", "Distances", _text(matrix), figures=[_map(matrix)], tables=[_table(matrix)]
    )


def _text(matrix: Matrix) -> str:
    kind = f"{'entropic, debiased, ' if matrix.eps else ''}{matrix.certainty()}"
    drawn = f" of at most {matrix.samples:,} images of each set" if matrix.samples else ""
    return (
        "Distances between all sets are optimal transport of the pre-trained model's features and "
        f"classes{drawn} ({kind}), in squared units of the features."
    )


def _scatter(points: list[forgetting.Point], upstream: str, strength: str) -> Figure:
    data = pandas.DataFrame(
        [{"set": p.name, "distance": p.distance, "drop": p.drop} for p in points]
    )
    x = specs.number("distance", f"distance to {upstream}", zero=False, format="~r")
    y = specs.number("drop", f"drop in accuracy on {upstream}, points", zero=False, format="~r")
    sides = labels.sides({p.name: (p.distance, p.drop) for p in points})
    return Figure(
        "forgetting",
        f"A dot for each set: how far it is from {upstream} against what plain fine-tuning on it "
        "loses there; the line is the least-squares trend.",
        strength,
        data,
        {
            "height": 320,
            "encoding": {"x": x, "y": y, "tooltip": TOOLTIP},
            "layer": [
                {
                    "transform": [{"regression": "drop", "on": "distance"}],
                    "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.5, "tooltip": None},
                    "encoding": {"tooltip": {"value": None}},
                },
                {"mark": {"type": "point", "size": 60}},
                *specs.named_points(sides, "set"),
            ],
        },
    )


def _map(matrix: Matrix) -> Figure:
    data = _pairs(matrix)
    known = data.dropna(subset=["distance"]).query("set != other")
    largest = float(np.nanmax(np.abs(matrix.values))) or 1.0
    decimals = min(3, max(0, 2 - math.floor(math.log10(largest))))
    spec = specs.heat_map(
        "other", "set", "distance", largest, PAIR, text_format=f".{decimals}f", step=30
    )
    spec["layer"][0]["encoding"]["color"]["scale"] = {"domain": [0, largest]}
    alt = "No pair of sets has a certified distance."
    if len(known):
        near, far = frames.extremes(known, "distance")
        alt = (
            f"Nearest: {near['set']} and {near['other']}, {near['distance']:.4g}; farthest: "
            f"{far['set']} and {far['other']}, {far['distance']:.4g}."
        )
    caption = "The farther, the darker; a pair that did not converge is empty."
    return Figure("distances", caption, alt, data, spec)


def _table(matrix: Matrix) -> Table:
    return Table(
        "distances",
        "Every pair: its distance, the certified gap and the marginal error; none where the pair "
        "did not converge.",
        _pairs(matrix, once=True),
        {"gap": "small", "marginal_error": "small"},
    )


def _pairs(matrix: Matrix, *, once: bool = False) -> pandas.DataFrame:
    """A row a pair of sets; once: not the other way round too, nor a set and itself."""
    rows = [
        {
            "set": name,
            "other": other,
            "distance": matrix.values[i, j],
            "gap": matrix.gaps[i, j],
            "marginal_error": matrix.marginal_errors[i, j],
        }
        for i, name in enumerate(matrix.names)
        for j, other in enumerate(matrix.names)
        if i < j or not once
    ]
    return pandas.DataFrame(rows)
