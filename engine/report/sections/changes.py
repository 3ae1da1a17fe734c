"""Where fine-tuning helps and where it hurts: RI by set, a map a method, and upstream."""

from __future__ import annotations

import pandas

from engine.measures.tables import extremes
from engine.report import charts
from engine.report.headline import measured_on
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.sections import ranking
from engine.report.text import counted, rounded, signed, slug

SMALL_MULTIPLES = 12  # maps side by side at most; of more, a reader chooses one


def by_set(results: Results) -> Section | None:
    """RI, set by set."""
    data = results.ri
    if data.empty:
        return None
    end = charts.scale_end(data["RI_pts"])
    least, most = extremes(data, "RI_pts")
    return Section(
        "improvements",
        f"RI is from {_at(least)} to {_at(most)}",
        "RI in points: fine-tuned on the set that heads the column, evaluated on "
        f"{measured_on(results)}.",
        figures=[
            _ri(results, model, data[data["model"] == model], end)
            for model in results.models
            if model in set(data["model"])
        ],
        tables=[ranking.before(results)],
    )


def _at(row: pandas.Series) -> str:
    return f"{signed(row['RI_pts'])} ({row['method']} on {row['downstream']})"


def _ri(results: Results, model: str, rows: pandas.DataFrame, end: float) -> Figure:
    least, most = extremes(rows, "RI_pts")
    shown = rows[["method", "downstream", "RI_pts", "RI_low", "RI_high"]]
    return Figure(
        slug("improvements", model),
        f"RI{results.of(model)}: blue is gain, orange loss.",
        f"RI of {counted('method', rows['method'].nunique())}, fine-tuned on "
        f"{counted('set', len(results.grid.downstreams))}{results.of(model)}: from {_at(least)} to "
        f"{_at(most)}.",
        shown,
        charts.heat(shown, "downstream", "method", "RI_pts", end=end),
    )


def maps(results: Results) -> Section | None:
    """Every set fine-tuned on by every set evaluated on."""
    names = ["model", "method", "downstream", "evaluated_on", "before_pct", "accuracy_pct"]
    names += ["accuracy_low", "accuracy_high", "change_pts"]
    if results.cells.empty:
        return None
    data = pandas.concat([_ordered(results, model)[names] for model in results.models])
    elsewhere = data[data["downstream"] != data["evaluated_on"]]
    end = charts.scale_end(elsewhere["change_pts"])
    pairs = list(dict.fromkeys(zip(data["model"], data["method"], strict=True)))
    worst, best = extremes(elsewhere, "change_pts")
    figures = [_chosen(data, len(pairs), end)]
    if len(pairs) <= SMALL_MULTIPLES:
        figures = [_map(k, *pair, data, end) for k, pair in enumerate(pairs, start=1)]
    holdout = "its hold-out" if results.record.holdout else "its training images (no hold-out)"
    diagonal = len(elsewhere) < len(data)
    return Section(
        "maps",
        f"{best['evaluated_on']} gains most ({signed(best['change_pts'])}, {_after(best)}), "
        f"{worst['evaluated_on']} loses most ({signed(worst['change_pts'])}, {_after(worst)})",
        "Rows: the set fine-tuned on. Columns: the set evaluated on, the upstream set last. Change "
        "in accuracy against the pre-trained model, in points; colours end at "
        f"{end:.0f} points."
        + f" The outlined diagonal is accuracy in percent on {holdout}."
        * diagonal,
        figures=figures,
    )


def _after(row: pandas.Series) -> str:
    return f"{row['method']} on {row['downstream']}"


def _ordered(results: Results, model: str) -> pandas.DataFrame:
    """A model's cells, by method, from the easiest sets to the hardest."""
    cells = results.cells[results.cells["model"] == model]
    order = {name: k for k, name in enumerate(results.before(model))}
    downs = {name: k for k, name in enumerate(results.downstreams(model))}
    methods = {name: k for k, name in enumerate(dict.fromkeys(cells["method"]))}
    keys = {
        "a": cells["method"].map(methods),
        "b": cells["downstream"].map(downs),
        "c": cells["evaluated_on"].map(order),
    }
    return cells.assign(**keys).dropna(subset="b").sort_values(["a", "b", "c"], kind="stable")


def _map(number: int, model: str, method: str, data: pandas.DataFrame, end: float) -> Figure:
    rows = data[(data["model"] == model) & (data["method"] == method)]
    others = rows[rows["downstream"] != rows["evaluated_on"]]
    worst, best = extremes(others, "change_pts")
    several = data["model"].nunique() > 1
    return Figure(
        slug("map", f"{number:02}", method),
        f"{method}{f', {model}' if several else ''}",
        f"{method}: change in accuracy from {signed(worst['change_pts'])} (on "
        f"{worst['evaluated_on']} after {worst['downstream']}) to {signed(best['change_pts'])} (on "
        f"{best['evaluated_on']} after {best['downstream']}).",
        rows,
        _heat(rows, end),
    )


def _heat(data: pandas.DataFrame, end: float) -> charts.Spec:
    columns = "evaluated_on", "downstream", "change_pts"
    return charts.heat(data, *columns, on_downstream="accuracy_pct", end=end, legend=False)


def _chosen(data: pandas.DataFrame, count: int, end: float) -> Figure:
    """All maps as one figure, of which a reader chooses one by model and method."""
    return Figure(
        "map",
        "The map of the model and method that are chosen above.",
        f"A heat map for each of {count} pairs of model and method; the table of all numbers "
        "holds theirs.",
        data,
        charts.chosen(_heat(data, end), data, ["model", "method"]),
    )


def forgotten(results: Results) -> Section | None:
    """What fine-tuning forgets on the upstream set."""
    shown, upstream = results.shown, results.record.upstream
    if "change_upstream_pts" not in shown:
        return None
    names = ["change_upstream_pts", "change_upstream_low", "change_upstream_high"]
    means = shown[["model", "method", "variant", *names]].dropna(subset=names[0])
    cells = results.cells
    cells = cells[(cells["evaluated_on"] == upstream) & (cells["downstream"] != upstream)]
    dots = cells[["model", "method", "downstream", "change_pts"]]
    models = list(dict.fromkeys(means["model"]))
    most, least = extremes(means, names[0])
    before = ", ".join(
        f"{rounded(results.before(model)[upstream])}%{results.of(model)}" for model in models
    )
    return Section(
        "upstream-change",
        f"Upstream, accuracy changes by {signed(most[names[0]])} ({most['method']}) to "
        f"{signed(least[names[0]])} ({least['method']})",
        f"Change in accuracy on {upstream}, in points, from {before} before. No part of RI.",
        figures=[_forgotten(results, model, means, dots) for model in models],
        tables=[
            Table(
                "upstream-change",
                f"Mean change on {upstream} in points, with its 95% interval.",
                means,
            )
        ],
    )


def _forgotten(
    results: Results, model: str, means: pandas.DataFrame, dots: pandas.DataFrame
) -> Figure:
    of_model = [rows[rows["model"] == model] for rows in (means, dots)]
    pairs = zip(of_model[0]["method"], of_model[0]["change_upstream_pts"], strict=True)
    numbers = ", ".join(f"{method} {signed(change)}" for method, change in pairs)
    data = pandas.concat(of_model, ignore_index=True).drop(columns=["model", "variant"])
    return Figure(
        slug("upstream-change", model),
        "A bar to the mean, a line across its end for the mean's 95% interval, a dot for each set "
        f"fine-tuned on{results.of(model)}.",
        f"Mean change on {results.record.upstream}: {numbers}.",
        data,
        charts.bars(data, "change_upstream_pts", dots="change_pts"),
    )
