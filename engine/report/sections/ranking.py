"""The table, the ranking, and the trade-off between adaptation and robustness."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pandas

from engine.measures.rows import trained_sets
from engine.measures.tables import extremes, groups, rows
from engine.report import charts, tuning
from engine.report.columns import between
from engine.report.headline import averaged_over, finding, measured_on
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import slug

MRI = ["mRI_pts", "mRI_low", "mRI_high"]
X, Y = "on_downstream_dataset_pct", "on_other_datasets_pct"  # of the trade-off


def models(results: Results) -> Section | None:
    """Methods by pretrained models, if there are several."""
    data = results.ranked()[["model", "method", *MRI]]
    if len(results.models) < 2 or data.empty:
        return None
    wide = data.pivot_table("mRI_pts", "method", "model", sort=False).add_suffix("_pts")
    _, best = extremes(data, "mRI_pts")
    caption = (
        f"mRI in points, averaged over {averaged_over(results)}{results.one_training}: one row per "
        "method, one column per pretrained model."
    )
    words = f"mRI from {between(data, 'mRI_pts', 'method', 'model')}."
    spec = charts.heat(data, "model", "method", "mRI_pts")
    heading = f"{best['method']} from {best['model']} has the highest mRI{results.one_training}"
    text = "\n".join(f"{model}: {finding(results, model)}" for model in results.models)
    if tuning.is_varied(results):
        heading, text = words.removesuffix("."), tuning.SELECTION
    return Section(
        "models",
        heading,
        text,
        [Figure("models", caption, words, data, spec)],
        [Table("models", caption, wide.rename_axis(columns=None).reset_index(), [*wide.columns])],
        is_open=True,
    )


def methods(results: Results) -> Section | None:
    """RI by downstream dataset and mRI of every method; the ranking by mRI."""
    data = _ranking(results)
    if data.empty:
        return None
    caption = (
        f"mRI with its 95% CI{results.one_training}, in points; mean accuracy on the downstream "
        "dataset and on the other datasets, in percent; mean change on "
        f"{results.record.upstream}, in points"
        f"{'; the published mRI' * ('published_mRI_pts' in data)}."
    )
    ranking = Table("ranking", caption + chosen_on_its_set(results) * (X in data), data)
    heading = f"mRI ranges from {between(data, 'mRI_pts', 'method')}{results.one_training}"
    if found := tuning.tuned(results):
        heading = f"{found.methods['method'].iloc[0]} ranks first by mRI, tuned on held-out images"
    note = ""
    if tuning.is_varied(results):
        note = f" There is one row per setting. {tuning.SELECTION}"
    return Section(
        "ranking",
        heading,
        "mRI: mean change in accuracy on datasets a model was not fine-tuned on, averaged over "
        f"{averaged_over(results)}.{note}",
        figures=by_model(
            results,
            "ranking",
            f"mRI in points, with its 95% CI{results.one_training}",
            data[["model", "method", *MRI]],
            ("mRI_pts", "method"),
            lambda rows: charts.bars(rows, "mRI_pts"),
        ),
        tables=[*(_by_set(results, *of) for of in groups(results.ri, "model")), ranking],
        is_open=True,
    )


def _ranking(results: Results) -> pandas.DataFrame:
    """One row per model and method, best mRI first."""
    data = results.ranked()
    values = [results.published_mri(row) for row in rows(data)]
    data = data.assign(published_mRI_pts=pandas.Series(values, data.index, float))
    numbers = [name for name in map(str, data) if name.endswith(("_pts", "_pct", "_low", "_high"))]
    return data[["model", "method", "variant", *numbers]].dropna(axis=1, how="all")


def _by_set(results: Results, model: str, ri: pandas.DataFrame) -> Table:
    """One row per method and one column per downstream dataset, as in papers."""
    wide = ri.pivot_table("RI_pts", "method", "downstream", sort=False)
    wide = wide[results.downstreams(model)].add_suffix("_pts").rename_axis(columns=None)
    of_model = results.shown[results.shown["model"] == model].set_index("method")
    wide = wide.join(of_model[MRI])
    return Table(
        slug("paper", *[model] * (len(results.models) > 1)),
        "RI in points, by downstream dataset (easiest for the pretrained model first), evaluated "
        f"on {measured_on(results)}; mRI with 95% CIs{results.of(model)}"
        f"{results.one_training}.",
        wide.reset_index(),
        [name for name in map(str, wide) if name.endswith("_pts")],
    )


def trade_off(results: Results) -> Section | None:
    """Accuracy on the downstream dataset against that on the others; None if a downstream dataset
    is not evaluated."""
    shown = results.shown
    if X not in shown or shown.empty:
        return None
    (_, adapted), (_, best) = extremes(shown, X), extremes(shown, Y)
    heading = (
        f"{best['method']} is most accurate on other datasets, {adapted['method']} on the "
        f"downstream dataset{results.one_training}"
    )
    if tuning.is_varied(results):
        heading = "Accuracy on downstream and other datasets"
    return Section(
        "trade-off",
        heading,
        "Higher is more robust; further right is better adapted. Lines interpolate weights from "
        "the pretrained model (α = 0) to the fine-tuned one (α = 1)." + chosen_on_its_set(results),
        figures=by_model(
            results,
            "trade-off",
            "Mean accuracy on the downstream dataset (x) and on other datasets (y), in percent",
            pandas.concat([_points(results, model) for model in results.models]),
            (Y, "label"),
            lambda rows: charts.scatter(
                rows, X, Y, "name", curve="curve" if rows["curve"].notna().any() else ""
            ),
        ),
        is_open=True,
    )


def _points(results: Results, model: str) -> pandas.DataFrame:
    """The pretrained model, every row of the table, and every step of every curve; `name` is empty
    for steps."""
    before, arms = results.before(model), results.arms
    sets, downstreams = results.grid.sets, results.grid.downstreams
    others = [fmean(before[j] for j in sets if j not in trained_sets(i)) for i in downstreams]
    on_own = [fmean(before[j] for j in trained_sets(i)) for i in downstreams]
    first: dict[str, Any] = {"label": "pretrained", "name": "pretrained"}
    first[X], first[Y] = fmean(on_own), fmean(others)
    arms = arms[arms["model"] == model]
    series = arms.groupby(["key", "variant", "setting"], sort=False)
    is_step = (series["alpha"].transform("count") > 1) & arms["alpha"].notna()
    steps = [f", α = {a:g}" if on else "" for a, on in zip(arms["alpha"], is_step, strict=True)]
    label = arms["method"] + steps
    data = arms[[X, Y, "alpha"]].assign(
        label=label,
        name=label.where(arms["shown"], ""),
        curve=series["method"].transform("first").where(is_step),
    )
    data = data[arms["shown"] | is_step].sort_values("curve", kind="stable", na_position="first")
    return pandas.concat([pandas.DataFrame([first]), data]).assign(model=model)


def chosen_on_its_set(results: Results) -> str:
    """A sentence on methods whose models were chosen on the images of their downstream accuracy;
    empty if there are none."""
    names = dict.fromkeys(
        str(results.record.methods.get(row.method, row.method))
        for row in results.record.rows
        if row.settings.get("method.select") == "greedy"
    )
    return (
        f" {', '.join(names)}: chosen by accuracy on held-out images of the downstream dataset, so "
        "its accuracy there is optimistic." * bool(names)
    )
