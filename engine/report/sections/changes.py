"""Where fine-tuning helps and where it hurts: RI by set, a map a method, and upstream."""

from __future__ import annotations

import pandas

from engine.measures.tables import extremes, groups, ordered
from engine.report import charts
from engine.report.columns import between, named_numbers
from engine.report.headline import measured_on
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.sections import ranking
from engine.report.text import rounded, signed, slug

UPSTREAM = ["change_upstream_pts", "change_upstream_low", "change_upstream_high"]


def by_set(results: Results) -> Section | None:
    """RI, set by set."""
    data = results.ri
    if data.empty:
        return None
    end = charts.scale_end(data["RI_pts"])
    return Section(
        "improvements",
        f"RI is from {between(data, 'RI_pts', 'method', 'downstream')}",
        "RI in points: fine-tuned on the set that heads the column, evaluated on "
        f"{measured_on(results)}.",
        figures=[_ri(results, *of, end) for of in groups(data, "model")],
        tables=[ranking.before(results)],
    )


def _ri(results: Results, model: str, rows: pandas.DataFrame, end: float) -> Figure:
    shown = rows[["method", "downstream", "RI_pts", "RI_low", "RI_high"]]
    return Figure(
        slug("improvements", model),
        f"RI{results.of(model)}: blue is gain, orange loss.",
        f"RI{results.of(model)} from {between(rows, 'RI_pts', 'method', 'downstream')}.",
        shown,
        charts.heat(shown, "downstream", "method", "RI_pts", end=end),
    )


def maps(results: Results) -> Section | None:
    """Every set fine-tuned on by every set evaluated on, a map a model and method."""
    names = ["model", "method", "downstream", "evaluated_on", "before_pct", "accuracy_pct"]
    names += ["accuracy_low", "accuracy_high", "change_pts"]
    if results.cells.empty:
        return None
    data = pandas.concat([_of_model(results, model)[names] for model in results.models])
    elsewhere = data[data["downstream"] != data["evaluated_on"]]
    end = charts.scale_end(elsewhere["change_pts"])
    worst, best = extremes(elsewhere, "change_pts")
    text = (
        "Rows: the set fine-tuned on. Columns: the set evaluated on, the upstream set last. Change "
        "in accuracy against the pre-trained model, in points; colours end at "
        f"{end:.0f} points."
    )
    if len(elsewhere) < len(data):
        holdout = "its hold-out" if results.record.holdout else "its training images (no hold-out)"
        text += f" The outlined diagonal is accuracy in percent on {holdout}."
    by_method = data.groupby(["model", "method"], sort=False)
    return Section(
        "maps",
        f"{best['evaluated_on']} gains most ({signed(best['change_pts'])}, {_after(best)}), "
        f"{worst['evaluated_on']} loses most ({signed(worst['change_pts'])}, {_after(worst)})",
        text,
        figures=[
            _map(f"{method}{f', {model}' * (len(results.models) > 1)}", number, rows, end)
            for number, ((model, method), rows) in enumerate(by_method, start=1)
        ],
    )


def _after(row: pandas.Series) -> str:
    return f"{row['method']} on {row['downstream']}"


def _of_model(results: Results, model: str) -> pandas.DataFrame:
    """A model's cells, by method, from the easiest sets to the hardest."""
    cells, downstreams = results.cells, results.downstreams(model)
    cells = cells[(cells["model"] == model) & cells["downstream"].isin(downstreams)]
    order = {"downstream": downstreams, "evaluated_on": results.before(model)}
    return ordered(cells, method=cells["method"], **order)


def _map(title: str, number: int, rows: pandas.DataFrame, end: float) -> Figure:
    others = rows[rows["downstream"] != rows["evaluated_on"]]
    sets = "evaluated_on", "downstream"
    return Figure(
        slug("map", f"{number:02}", rows["method"].iloc[0]),
        title,
        f"{title}: change in accuracy from {between(others, 'change_pts', *sets)}.",
        rows,
        charts.heat(rows, *sets, "change_pts", on_downstream="accuracy_pct", end=end),
    )


def forgotten(results: Results) -> Section | None:
    """What fine-tuning forgets on the upstream set."""
    shown, upstream, change = results.shown, results.record.upstream, UPSTREAM[0]
    if change not in shown:
        return None
    means = shown[["model", "method", "variant", *UPSTREAM]].dropna(subset=change)
    before = ", ".join(
        f"{rounded(results.before(model)[upstream])}%{results.of(model)}"
        for model in dict.fromkeys(means["model"])
    )
    return Section(
        "upstream-change",
        f"Upstream, accuracy changes by {between(means, change, 'method')}",
        f"Change in accuracy on {upstream}, in points, from {before} before. No part of RI.",
        figures=[_forgotten(results, *of) for of in groups(means, "model")],
        tables=[
            Table(
                "upstream-change",
                f"Mean change on {upstream} in points, with its 95% interval.",
                means,
            )
        ],
    )


def _forgotten(results: Results, model: str, means: pandas.DataFrame) -> Figure:
    data = means[["method", *UPSTREAM]]
    return Figure(
        slug("upstream-change", model),
        f"The mean over the sets fine-tuned on, with its 95% interval{results.of(model)}.",
        f"Mean change on {results.record.upstream}: {named_numbers(means, 'method', UPSTREAM[0])}.",
        data,
        charts.bars(data, UPSTREAM[0]),
    )
