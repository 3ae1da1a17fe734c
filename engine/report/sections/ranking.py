"""The story in a minute: the table, the ranking, and what adapting costs elsewhere."""

from __future__ import annotations

import pandas

from engine.measures.tables import extremes, groups
from engine.report import charts, columns
from engine.report.headline import averaged_over, finding, measured_on
from engine.report.results import Results, published
from engine.report.section import Figure, Section, Table
from engine.report.text import slug

NUMBERS = ["mRI_pts", "on_downstream_set_pct", "on_other_sets_pct", "change_upstream_pts"]


def models(results: Results) -> Section | None:
    """Methods beside pre-trained models, where there are several."""
    data = results.ranked()[["model", "method", "mRI_pts", "mRI_low", "mRI_high"]]
    if len(results.models) < 2 or data.empty:
        return None
    wide = data.pivot_table("mRI_pts", "method", "model", sort=False).add_suffix("_pts")
    _, best = extremes(data, "mRI_pts")
    figure = Figure(
        "models",
        "mRI of every method (rows) from every pre-trained model (columns).",
        f"mRI from {columns.between(data, 'mRI_pts', 'method', 'model')}.",
        data,
        charts.heat(data, "model", "method", "mRI_pts"),
    )
    caption = "mRI in points, a column a pre-trained model."
    return Section(
        "models",
        f"{best['method']} from {best['model']} has the highest mRI",
        f"mRI in points, a mean over {averaged_over(results)}.",
        [f"{model}: {finding(results, model)}" for model in results.models],
        [figure],
        [Table("models", caption, wide.rename_axis(columns=None).reset_index(), [*wide.columns])],
        is_open=True,
    )


def methods(results: Results) -> Section | None:
    """RI by set and mRI of every method; the ranking by mRI."""
    data = _ranking(results)
    if data.empty:
        return None
    known = "on_downstream_set_pct" in data
    caption = (
        "mRI with its 95% interval; mean accuracy in percent; mean change in points on "
        f"{results.record.upstream}{', the published mRI' * ('published_mRI_pts' in data)}."
    )
    ranking = Table("ranking", caption + known * chosen_on_its_set(results), data)
    _, best = extremes(data, "mRI_pts")
    return Section(
        "ranking",
        f"{best['method']} ranks first by mRI",
        "Mean change in accuracy, in points, on the sets a model was not fine-tuned on: a mean "
        f"over {averaged_over(results)}.",
        figures=[_bars(results, *of) for of in groups(data, "model")],
        tables=[*(_by_set(results, model) for model in results.models), ranking],
        is_open=True,
    )


def _ranking(results: Results) -> pandas.DataFrame:
    """A row a model and method, best mRI first."""
    data = results.ranked()
    ends = [[n, *(f"{columns.base(n)}_{end}" for end in ("low", "high"))] for n in NUMBERS]
    names = ["model", "method", "variant", *(name for of in ends for name in of if name in data)]
    pairs = zip(data["model"], data["key"], strict=True)
    values = [results.published_mri(model).get(key) for model, key in pairs]
    data = data[names].reset_index(drop=True)
    data["published_mRI_pts"] = pandas.Series(values, dtype=float)
    return data.dropna(axis=1, how="all")


def _bars(results: Results, model: str, data: pandas.DataFrame) -> Figure:
    bars = data[["method", "mRI_pts", "mRI_low", "mRI_high"]]
    return Figure(
        slug("ranking", model),
        f"mRI{results.of(model)} in points, with its 95% interval.",
        f"Mean robustness improvement{results.of(model)}: "
        f"{columns.named_numbers(bars, 'method', 'mRI_pts')}.",
        bars,
        charts.bars(bars, "mRI_pts"),
    )


def _by_set(results: Results, model: str) -> Table:
    """A row a method, a column a set, as papers print it."""
    ri = results.ri[results.ri["model"] == model]
    wide = ri.pivot_table("RI_pts", "method", "downstream", sort=False)
    wide = wide[results.downstreams(model)].add_suffix("_pts").rename_axis(columns=None)
    of_model = results.shown[results.shown["model"] == model].set_index("method")
    wide = wide.join(of_model[["mRI_pts", "mRI_low", "mRI_high"]])
    return Table(
        slug("paper", *[model] * (len(results.models) > 1)),
        "RI in points: fine-tuned on the set that heads the column, evaluated on "
        f"{measured_on(results)}; mRI with its 95% interval{results.of(model)}. The easiest set "
        "for the pre-trained model comes first.",
        wide.reset_index(),
        [name for name in map(str, wide) if name.endswith("_pts")],
    )


def trade_off(results: Results) -> Section | None:
    """Accuracy on the set fine-tuned on against that on the others; None where a set is trained on
    and not evaluated."""
    shown = results.shown
    if "on_downstream_set_pct" not in shown or shown.empty:
        return None
    _, best = extremes(shown, "on_other_sets_pct")
    _, adapted = extremes(shown, "on_downstream_set_pct")
    heading = f"{best['method']} is the most accurate elsewhere, {adapted['method']} on its own set"
    if best["arm"] == adapted["arm"]:
        heading = f"{best['method']} is the most accurate on its own set and elsewhere"
    curves = bool(shown["alpha"].notna().any())
    return Section(
        "trade-off",
        heading,
        "Up is more robust, right is better adapted."
        + " A curve interpolates weights from the pre-trained model (α = 0) to the fine-tuned one "
        "(α = 1)." * curves + chosen_on_its_set(results),
        figures=[_points(results, model) for model in dict.fromkeys(shown["model"])],
        is_open=True,
    )


def _points(results: Results, model: str) -> Figure:
    """The pre-trained model, every row of the table, and every step of every curve; `name` is empty
    where a dot is only a step."""
    x, y = "on_downstream_set_pct", "on_other_sets_pct"
    before, arms = results.before(model), results.arms
    sets, downstreams = results.grid.sets, results.grid.downstreams
    others = [before[j] for i in downstreams for j in sets if i != j]
    on_downstream = sum(before[i] for i in downstreams) / len(downstreams)
    first = {"label": "pre-trained", "name": "pre-trained", x: on_downstream}
    first[y] = sum(others) / len(others)
    arms = arms[arms["model"] == model]
    series = arms.groupby(["key", "variant", "setting"], sort=False)
    is_step = (series["alpha"].transform("count") > 1) & arms["alpha"].notna()
    line = series["method"].transform("first").where(is_step)
    steps = [f", α = {a:g}" if on else "" for a, on in zip(arms["alpha"], is_step, strict=True)]
    label = arms["method"] + steps
    data = arms[[x, y, "alpha"]].assign(label=label, name=label.where(arms["shown"], ""))
    data = data.assign(curve=line)[arms["shown"] | is_step]
    data = data.sort_values("curve", kind="stable", na_position="first")
    data = pandas.concat([pandas.DataFrame([first]), data], ignore_index=True)
    return Figure(
        slug("trade-off", model),
        f"Mean accuracy on the set fine-tuned on against that on the other sets{results.of(model)},"
        " in percent.",
        f"On the other sets from {columns.between(data, y, 'label')}; on the set fine-tuned on "
        f"from {columns.between(data, x, 'label')}, in percent.",
        data,
        charts.scatter(data, x, y, "name", curve="curve" if is_step.any() else ""),
    )


def chosen_on_its_set(results: Results) -> str:
    """A sentence that names the methods whose models were chosen by the very images that their
    accuracy on the set fine-tuned on is of; empty where there are none."""
    names = dict.fromkeys(
        str(results.record.methods.get(method, method))
        for method, options in results.recipes
        if "select=greedy" in str(options.get("options")).split(", ")
    )
    if not names:
        return ""
    return (
        f" {', '.join(names)}: chosen by accuracy on the images held out of the set fine-tuned on, "
        "so that its accuracy there is too good."
    )


def before(results: Results) -> Table:
    """The pre-trained models' accuracy, and the published one where it is known."""
    cells = results.grid.cells
    pre = cells[cells["downstream"] == ""]
    table = results.grid.mean(pre, ["model", "evaluated_on"]).table("accuracy_pct", clip=True)
    order = [(model, name) for model in results.models for name in results.before(model)]
    table = table.set_index(["model", "evaluated_on"]).loc[order].reset_index()
    known = [published(model).get("before", {}).get(name) for model, name in order]
    table["published_pct"] = pandas.Series(known, dtype=float)
    return Table(
        "before",
        "Accuracy of the pre-trained model in percent, with its 95% interval.",
        table.rename(columns={"evaluated_on": "set"}).dropna(axis=1, how="all"),
    )
