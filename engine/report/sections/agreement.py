"""What became of single answers: right before and after, lost, gained, per set."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pandas

from engine.measures.rows import Agreement
from engine.measures.standings import Standings
from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.specs import Spec
from engine.report.tables import Results

SHARES = {"both_right": "right before and after", "lost": "lost", "gained": "gained"}
TOOLTIP = [
    specs.field("method"),
    specs.field("evaluated_on", "on"),
    specs.field("outcome"),
    specs.field("percent", "% of images", ".2f"),
    specs.field("low", "95% from", ".2f"),
    specs.field("high", "to", ".2f"),
]


def section(results: Results) -> Section | None:
    data = _rows(results)
    if data.empty:
        return None
    names = Agreement._fields
    table = Table(
        "agreement",
        "Percent of a set's images: top-1 class the same before and after, right both times, lost "
        "(right before only), gained (right after only). Means over the models that were "
        "fine-tuned on other sets, with 95% intervals.",
        data,
        dict.fromkeys(names, "span"),
    )
    return Section(
        "agreement",
        "What became of single answers",
        "Equal accuracy can hide that many answers changed. Each image of a set was right before "
        "fine-tuning or after it, both times or never: right both times and lost add up to "
        "accuracy before, right both times and gained to accuracy after. Numbers are means over "
        f"the models fine-tuned on other sets. Intervals are about {results.sure.population}.",
        [_statement(results, model, data) for model in results.models if model.lines],
        [_figure(results, model, data) for model in results.models if model.lines],
        [table],
    )


def _rows(results: Results) -> pandas.DataFrame:
    """A row a model, method and set evaluated on, with each share and its interval."""
    values: dict[tuple[Any, str], list[Agreement]] = {}
    for row in results.sure.behaviour:
        if not row.on_downstream and row.same_top1 is not None:
            values.setdefault((row.arm, row.evaluated_on), []).append(row.agreement)
    rows = []
    for model, line in results.lines:
        for name in frames.in_order(model, model.before):
            if cells := values.get((line.arm, name)):
                row = frames.of_line(model, line) | {"evaluated_on": name, "models": len(cells)}
                for share in Agreement._fields:
                    row[share] = fmean(getattr(cell, share) for cell in cells)
                    row |= frames.ends(results, share, share, line.arm, "", name)
                rows.append(row)
    return pandas.DataFrame(rows)


def _statement(results: Results, model: Standings, data: pandas.DataFrame) -> str:
    """How many answers change on the other sets, by the method that changes most and least."""
    by_method: dict[str, list[Any]] = {}
    for row in data.itertuples():
        if row.model == model.model and row.evaluated_on in model.sets:
            by_method.setdefault(str(row.method), []).append(row)
    same = {name: fmean(row.same_top1 for row in rows) for name, rows in by_method.items()}
    texts = [
        f"{name} changes {100 - same[name]:.1f}% of the answers, loses "
        f"{fmean(row.lost for row in by_method[name]):.1f} points of right ones and gains "
        f"{fmean(row.gained for row in by_method[name]):.1f}"
        for name in dict.fromkeys(
            [min(same, key=same.__getitem__), max(same, key=same.__getitem__)]
        )
    ]
    return f"Means over the sets{frames.label(results, model)}: {'; '.join(texts)}."


def _figure(results: Results, model: Standings, data: pandas.DataFrame) -> Figure:
    of_model = data[data["model"] == model.model]
    rows = [
        {
            "method": row["method"],
            "evaluated_on": row["evaluated_on"],
            "outcome": outcome,
            "outcome_order": list(SHARES).index(share),
            "percent": row[share],
            "low": row.get(f"{share}_low"),
            "high": row.get(f"{share}_high"),
        }
        for row in of_model.to_dict("records")
        for share, outcome in SHARES.items()
    ]
    return Figure(
        frames.slug("agreement", model.model),
        f"Images that were right before or after fine-tuning{frames.label(results, model)}, in "
        "percent of each set; the rest were never right.",
        _statement(results, model, data),
        pandas.DataFrame(rows),
        _spec([*model.sets, results.record.upstream]),
    )


def _spec(sets: list[str]) -> Spec:
    """Stacked bars a method, a panel a set."""
    order = {"sort": list(SHARES.values()), "scale": {"domain": list(SHARES.values())}}
    legend = {"orient": "top", "title": None}
    return {
        "columns": 3,
        "spacing": 14,
        "facet": {"field": "evaluated_on", "type": "nominal", "sort": sets, "title": None},
        "spec": {
            "width": 170,
            "height": {"step": 18},
            "mark": {"type": "bar"},
            "encoding": {
                "y": specs.axis_of_names("method"),
                "x": specs.number("percent", "% of images", format="~r") | {"stack": "zero"},
                "color": {"field": "outcome", "type": "nominal", **order, "legend": legend},
                "order": {"field": "outcome_order", "type": "quantitative"},
                "tooltip": TOOLTIP,
            },
        },
    }
