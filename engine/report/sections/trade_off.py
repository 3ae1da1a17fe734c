"""What adapting to a set costs on the others, with the curves of interpolated weights."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pandas

from engine.measures.standings import Line, Standings
from engine.report import frames, labels, specs
from engine.report.section import Figure, Section
from engine.report.specs import Spec
from engine.report.tables import Results

TOOLTIP = [
    specs.field("label", "model"),
    specs.field("on_downstream_set", "on the set fine-tuned on, %", ".2f"),
    specs.field("on_other_sets", "on the others, %", ".2f"),
]


def section(results: Results) -> Section | None:
    """None where a set is trained on and not evaluated."""
    models = [
        model
        for model in results.models
        if model.lines and all(name in model.before for name in model.downstreams)
    ]
    if not models:
        return None
    curves = any(model.curves for model in models)
    return Section(
        "trade-off",
        "What adapting costs elsewhere",
        "Up is more robust, right is better adapted."
        + " A curve interpolates weights from the pre-trained model (α = 0) to the fine-tuned one "
        "(α = 1), a dot a step of α." * curves + frames.chosen_on_own_set(results),
        figures=[_figure(results, model) for model in models],
    )


def _figure(results: Results, model: Standings) -> Figure:
    data = _points(model)
    best = max(model.lines, key=lambda line: line.ood)
    adapted = max(model.lines, key=_adapted)
    return Figure(
        frames.slug("trade-off", model.model),
        "Mean accuracy on the set fine-tuned on against that on the other sets"
        f"{frames.label(results, model)}, in percent.",
        f"Highest on the other sets: {best.title}, {best.ood:.1f}%; highest on the set fine-tuned "
        f"on: {adapted.title}, {_adapted(adapted):.1f}%.",
        data,
        _spec(data),
    )


def _points(model: Standings) -> pandas.DataFrame:
    """The pre-trained model, every row of the table, and every step of every curve; `name` is
    empty where a point is only a step."""
    before = fmean(model.before[i] for i in model.downstreams)
    others = fmean(model.before[j] for i in model.downstreams for j in model.sets if i != j)
    named = {line.arm: line.title for line in model.lines}
    on_curve = {line.arm for curve in model.curves for line in curve}
    rows = [_point("pre-trained", "pre-trained", before, others)]
    for line in model.lines:
        if line.arm not in on_curve:
            rows.append(_point(line.title, line.title, _adapted(line), line.ood))
    for curve in model.curves:
        rows += [_step(line, named.get(line.arm, ""), curve[0].title) for line in curve]
    return pandas.DataFrame(rows)


def _adapted(line: Line) -> float:
    """Accuracy on the set fine-tuned on, which the section's models all have."""
    assert line.downstream is not None, line.title
    return line.downstream


def _step(line: Line, name: str, curve: str) -> dict[str, Any]:
    label = f"{line.title}, α = {line.arm.alpha:g}"
    point = _point(label, name and label, _adapted(line), line.ood)
    return point | {"alpha": line.arm.alpha, "curve": curve}


def _point(label: str, name: str, downstream: float, others: float) -> dict[str, Any]:
    return {
        "label": label,
        "name": name,
        "on_downstream_set": downstream,
        "on_other_sets": others,
        "alpha": None,
        "curve": None,
    }


def _between_steps(data: pandas.DataFrame) -> list[labels.Point]:
    """Points on the lines of the curves, close to each other."""
    between = []
    for _, curve in data.dropna(subset="curve").groupby("curve"):
        curve = curve.sort_values("alpha")
        shares = np.linspace(0, len(curve) - 1, 12 * len(curve))
        x, y = (
            np.interp(shares, range(len(curve)), curve[column])
            for column in ("on_downstream_set", "on_other_sets")
        )
        between += zip(x.tolist(), y.tolist(), strict=True)
    return between


def _spec(data: pandas.DataFrame) -> Spec:
    x = specs.number("on_downstream_set", "on the set fine-tuned on, %", zero=False, format="~r")
    y = specs.number("on_other_sets", "on the other sets, %", zero=False, format="~r")
    steps = {"filter": "isValid(datum.curve)"}
    color = {"field": "curve", "type": "nominal", "legend": None}
    named = data["name"] != ""
    points = list(zip(data["on_downstream_set"], data["on_other_sets"], strict=True))
    steps_only = [point for point, has_name in zip(points, named, strict=True) if not has_name]
    names = {name: point for name, point in zip(data["name"], points, strict=True) if name}
    sides = labels.sides(names, [*steps_only, *_between_steps(data)])
    return {
        "height": 340,
        "encoding": {"x": x, "y": y, "tooltip": TOOLTIP},
        "layer": [
            {
                "transform": [steps],
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"color": color, "order": {"field": "alpha"}},
            },
            {"transform": [steps], "mark": {"type": "point", "size": 28}},
            {
                "transform": [{"filter": "datum.name !== ''"}],
                "mark": {"type": "point", "size": 70},
            },
            *specs.named_points(sides, "name"),
        ],
    }
