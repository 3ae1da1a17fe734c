"""Accuracy on each set above what accuracy upstream predicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import pandas

from engine.measures import intervals
from engine.measures.effective_robustness import Trend, at, probit
from engine.measures.rows import PRE, Arm, ModelOnSet
from engine.measures.standings import signed
from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.specs import Spec
from engine.report.tables import Results

NAME = intervals.ROBUSTNESS
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks
TOOLTIP = [
    specs.field("model"),
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("upstream", "upstream, %", ".2f"),
    specs.field("accuracy", "on the set, %", ".2f"),
    specs.field(NAME, "above the line, points", "+.2f"),
]


def section(results: Results) -> Section | None:
    if all(row.effective_robustness is None for row in results.sure.behaviour):
        return None  # no line: too few models, or all of the same accuracy upstream
    known = {row.cell: row.accuracy for row in results.grid.accuracy}
    points = _points(results, known)
    upstream = results.record.upstream
    best = _means(results)
    return Section(
        "effective-robustness",
        "Robustness beyond accuracy",
        f"A model that is better on {upstream} is usually better elsewhere too. A set's line shows "
        "how much, over models that nothing made robust to the set, on a probit scale (Taori et "
        "al. 2020; Miller et al. 2021). Effective robustness is the height of a model above the "
        "line, in points of accuracy. "
        f"{_basis(results.sure.trends)} Intervals are about {results.sure.population}; lines over "
        "models of this run are fitted again in every draw.",
        _statements(results, known),
        [_figure(results, points)],
        [
            Table(
                "effective-robustness",
                "Effective robustness in points, a mean over the sets that a model was not "
                "fine-tuned on, with its 95% interval.",
                best,
                {NAME: "interval"},
            ),
            Table(
                "effective-robustness-sets",
                "Effective robustness in points on each set, a mean over the models that were "
                "fine-tuned on other sets, with its 95% interval.",
                _on_sets(results),
                {NAME: "interval"},
            ),
        ],
    )


def _titles(results: Results) -> dict[Arm, str]:
    """By arm of a table, and by pre-trained model, its name."""
    before = {Arm(model.model, PRE, "", None): "pre-trained" for model in results.models}
    return before | {line.arm: line.title for _, line in results.lines}


def _points(results: Results, known: Mapping[ModelOnSet, float]) -> pandas.DataFrame:
    """A row a model of a table and set, then the models that the user gave, then two ends of each
    set's line; `kind` is model, given or line."""
    upstream, titles = results.record.upstream, _titles(results)
    robustness = {row.cell: row.effective_robustness for row in results.sure.behaviour}
    rows: list[dict[str, Any]] = []
    for name, trend in results.sure.trends.items():
        shown = [cell for cell in trend.cells if cell.arm in titles]
        on_set = [
            {
                "kind": "model",
                "model": cell.model,
                "method": titles[cell.arm],
                "downstream": cell.downstream,
                "upstream": known[at(cell, upstream)],
                "accuracy": known[cell],
                NAME: robustness[cell],
            }
            for cell in shown
        ]
        if not trend.fitted:
            on_set += [
                {"kind": "given", "method": "given by the user", "upstream": x, "accuracy": y}
                for x, y in trend.given.T.tolist()
            ]
        line = trend.line(lambda cell: np.array([known[cell]]), upstream)
        if not np.isnan(line.slope).any():
            ends = [pick(row["upstream"] for row in on_set) for pick in (min, max)]
            predicted = line.accuracy(np.array([ends]))[0].tolist()
            on_set += [
                {"kind": "line", "upstream": x, "accuracy": y}
                for x, y in zip(ends, predicted, strict=True)
            ]
        rows += [row | {"evaluated_on": name} for row in on_set]
    data = pandas.DataFrame(rows)
    for column in ("upstream", "accuracy"):
        data[f"{column}_probit"] = probit(data[column].to_numpy())
    return data


def _basis(trends: Mapping[str, Trend]) -> str:
    """What the lines are fitted over, in a sentence for each kind."""
    by_basis: dict[tuple[str, int], list[str]] = {}
    for name, trend in trends.items():
        by_basis.setdefault((trend.basis, trend.models), []).append(name)
    texts = [
        f"The line of {', '.join(names)} is fitted over {models} {basis}."
        for (basis, models), names in by_basis.items()
    ]
    return " ".join(texts)


def _statements(results: Results, known: Mapping[ModelOnSet, float]) -> list[str]:
    """Slope and fit of every line."""
    upstream = results.record.upstream
    statements = []
    for name, trend in results.sure.trends.items():
        line = trend.line(lambda cell: np.array([known[cell]]), upstream)
        slope = float(line.slope[0, 0])
        if np.isnan(slope):
            statements.append(
                f"{name}: no line, since all {trend.models} models have the same accuracy on "
                f"{upstream}."
            )
            continue
        x, y = trend.given
        if trend.fitted:
            x = np.array([known[at(cell, upstream)] for cell in trend.fitted])
            y = np.array([known[cell] for cell in trend.fitted])
        residual = probit(y) - probit(line.accuracy(x[None])[0])
        spread = float(((probit(y) - probit(y).mean()) ** 2).sum())
        share = f", R² {1 - float((residual**2).sum()) / spread:.2f}" if spread > 0 else ""
        statements.append(f"{name}: slope {signed(slope, 2)} on the probit scale{share}.")
    return statements


def _means(results: Results) -> pandas.DataFrame:
    """A row a model and method, highest mean effective robustness first within a model."""
    rows = []
    for model in results.models:
        of_model: dict[Arm, list[float | None]] = {}
        for row in results.sure.behaviour:
            if (
                row.model == model.model
                and row.evaluated_on in model.sets
                and not row.on_downstream
            ):
                of_model.setdefault(row.arm, []).append(row.effective_robustness)
        for arm, title in _titles(results).items():
            values = of_model.get(arm, [])
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                row = {"model": model.model, "method": title, NAME: fmean(known)}
                rows.append(row | frames.ends(results, NAME, NAME, arm))
    data = pandas.DataFrame(rows, columns=None if rows else ["model", "method", NAME])
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")


def _on_sets(results: Results) -> pandas.DataFrame:
    """A row a model, method and set."""
    values: dict[tuple[Arm, str], list[float]] = {}
    for row in results.sure.behaviour:
        if row.effective_robustness is not None:
            values.setdefault((row.arm, row.evaluated_on), []).append(row.effective_robustness)
    rows = [
        {"model": arm.model, "method": title, "evaluated_on": name, "models": len(of_arm)}
        | {NAME: fmean(of_arm)}
        | frames.ends(results, NAME, NAME, arm, "", name)
        for arm, title in _titles(results).items()
        for name in results.record.sets
        if (of_arm := values.get((arm, name)))
    ]
    return pandas.DataFrame(rows)


def _figure(results: Results, points: pandas.DataFrame) -> Figure:
    upstream = results.record.upstream
    sets, group = list(results.models[0].sets), "method" if len(results.models) == 1 else "model"
    models = points[points["kind"] == "model"]
    high = models.iloc[models[NAME].astype(float).argmax()] if models[NAME].notna().any() else None
    alt = f"Accuracy on {upstream} against accuracy on each of {models['evaluated_on'].nunique()} "
    alt += "sets, with a trend line each."
    if high is not None:
        trained = f" fine-tuned on {high['downstream']}" if high["downstream"] else ""
        alt += (
            f" Farthest above its line: {high['method']}{trained} on {high['evaluated_on']}, "
            f"{signed(high[NAME])} points."
        )
    return Figure(
        "effective-robustness",
        f"Accuracy on {upstream} (x) and on each set (y) in percent, both on a probit scale; a dot "
        "a model, dashed the trend line. Above the line is more robust than accuracy predicts.",
        alt,
        points,
        _spec(upstream, sets, group, set(points["kind"])),
    )


def _spec(upstream: str, sets: list[str], group: str, kinds: Collection[str]) -> Spec:
    """A panel a set: dots of models, rings of given models, and the line; a layer for each kind of
    row, since Vega warns of layers without any."""
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    axis = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}

    def channel(column: str, title: str) -> Spec:
        base = specs.number(f"{column}_probit", title, zero=False)
        return base | {"axis": axis, "scale": {"zero": False, "nice": False, "padding": 8}}

    legend = {"orient": "bottom", "columns": 4, "title": None, "symbolOpacity": 1}
    marked_by = {"field": group, "type": "nominal", "sort": None, "legend": legend}

    def layer(kind: str, mark: Spec, encoding: Spec | None = None) -> Spec:
        keep = [{"filter": f"datum.kind === '{kind}'"}]
        return {"transform": keep, "mark": mark, "encoding": encoding or {}}

    layers = {
        "line": layer("line", {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.2}),
        "given": layer("given", {"type": "point", "filled": False, "size": 24, "opacity": 0.6}),
        "model": layer(
            "model",
            {"type": "point", "size": 34, "opacity": 0.8},
            {"color": marked_by, "shape": marked_by, "tooltip": TOOLTIP},
        ),
    }
    return {
        "columns": 3,
        "spacing": 14,
        "facet": {"field": "evaluated_on", "type": "nominal", "sort": sets, "title": None},
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {
            "width": 190,
            "height": 190,
            "encoding": {
                "x": channel("upstream", f"on {upstream}, %"),
                "y": channel("accuracy", "on the set, %"),
            },
            "layer": [layers[kind] for kind in layers if kind in kinds],
        },
    }
