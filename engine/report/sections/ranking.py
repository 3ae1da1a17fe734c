"""The story in a minute: the table, the ranking, and what adapting costs elsewhere."""

from __future__ import annotations

import pandas

from engine.measures.tables import extremes, rows
from engine.report import charts
from engine.report.headline import averaged_over, finding, measured_on
from engine.report.results import Results, published
from engine.report.section import Figure, Section, Table
from engine.report.text import signed, slug

NUMBERS = ["mRI", "on_downstream_set", "on_other_sets", "change_upstream"]


def models(results: Results) -> Section | None:
    """Methods beside pre-trained models, where there are several."""
    data = results.ranked()[["model", "method", "mRI_pts", "mRI_low", "mRI_high"]]
    if len(results.models) < 2 or data.empty:
        return None
    wide = data.pivot_table("mRI_pts", "method", "model", sort=False)
    wide.columns = [f"{model}_pts" for model in wide.columns]
    best = rows(data.drop_duplicates("model"))
    alt = ", ".join(f"{row.model}: {row.method} {signed(row.mRI_pts)}" for row in best)
    return Section(
        "models",
        "Methods and pre-trained models",
        f"mRI in points, a mean over {averaged_over(results)}.",
        [f"{model}: {finding(results, model)}" for model in results.models],
        [
            Figure(
                "models",
                "mRI of every method (rows) from every pre-trained model (columns).",
                f"mRI by method and pre-trained model; the best of each: {alt}.",
                data,
                charts.heat(data, "model", "method", "mRI_pts"),
            )
        ],
        [
            Table(
                "models",
                "mRI in points, a column a pre-trained model.",
                wide.reset_index(),
                [*wide.columns],
            )
        ],
        is_open=True,
    )


def methods(results: Results) -> Section | None:
    """RI by set and mRI of every method; the ranking by mRI."""
    data = _ranking(results)
    if data.empty:
        return None
    known = "on_downstream_set_pct" in data
    caption = "mRI with its 95% interval; mean accuracy in percent "
    caption += "on the set fine-tuned on and on the others" if known else "on the sets"
    caption += f"; mean change in points on {results.record.upstream}"
    caption += "; the published mRI." if "published_mRI_pts" in data else "."
    tables = [_by_set(results, model) for model in results.models]
    tables.append(Table("ranking", caption + known * chosen_on_its_set(results), data))
    n = data["model"].nunique()
    return Section(
        "ranking",
        f"{data.iloc[0]['method']} ranks first by mRI" if n == 1 else "The ranking by mRI",
        "Mean change in accuracy, in points, on the sets a model was not fine-tuned on: a mean "
        f"over {averaged_over(results)}.",
        figures=[_bars(results, model, data) for model in results.models],
        tables=tables,
        is_open=True,
    )


def _ranking(results: Results) -> pandas.DataFrame:
    """A row a model and method, best mRI first."""
    data = results.ranked()
    names = ["model", "method", "variant"]
    for name in NUMBERS:
        unit = "pct" if name.startswith("on_") else "pts"
        names += [k for k in (f"{name}_{unit}", f"{name}_low", f"{name}_high") if k in data]
    values = [
        results.published_mri(model).get(key)
        for model, key in zip(data["model"], data["key"], strict=True)
    ]
    data = data[names].reset_index(drop=True)
    return data.assign(published_mRI_pts=pandas.Series(values, dtype=float)).dropna(
        axis=1, how="all"
    )


def _bars(results: Results, model: str, data: pandas.DataFrame) -> Figure:
    bars = data.loc[data["model"] == model, ["method", "mRI_pts", "mRI_low", "mRI_high"]]
    pairs = zip(bars["method"], bars["mRI_pts"], strict=True)
    numbers = ", ".join(f"{method} {signed(mri)}" for method, mri in pairs)
    return Figure(
        slug("ranking", model),
        f"mRI{results.of(model)} in points. A bar starts at the pre-trained model; the line across "
        "its end is the 95% interval.",
        f"Mean robustness improvement{results.of(model)}: {numbers}.",
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
        f"{measured_on(results)}; mRI with its 95% interval{results.of(model)}. Sets stand from "
        "the easiest to the hardest for the pre-trained model.",
        wide.reset_index(),
        [name for name in map(str, wide) if name.endswith("_pts")],
    )


def trade_off(results: Results) -> Section | None:
    """Accuracy on the set fine-tuned on against that on the others; None where a set is trained on
    and not evaluated."""
    shown = results.shown
    if "on_downstream_set_pct" not in shown or shown.empty:
        return None
    models = list(dict.fromkeys(shown["model"]))
    curves = bool(shown["alpha"].notna().any())
    _, best = extremes(shown, "on_other_sets_pct")
    _, adapted = extremes(shown, "on_downstream_set_pct")
    heading = f"{best['method']} is the most accurate elsewhere, {adapted['method']} on its own set"
    if best["arm"] == adapted["arm"]:
        heading = f"{best['method']} is the most accurate on its own set and elsewhere"
    return Section(
        "trade-off",
        heading if len(models) == 1 else "What adapting costs elsewhere",
        "Up is more robust, right is better adapted."
        + " A curve interpolates weights from the pre-trained model (α = 0) to the fine-tuned one "
        "(α = 1), a dot a step of α." * curves + chosen_on_its_set(results),
        figures=[_points(results, model) for model in models],
        is_open=True,
    )


def _points(results: Results, model: str) -> Figure:
    """The pre-trained model, every row of the table, and every step of every curve; `name` is empty
    where a dot is only a step."""
    before, arms = results.before(model), results.arms
    sets, downstreams = results.grid.sets, results.grid.downstreams
    others = [before[j] for i in downstreams for j in sets if i != j]
    first = {
        "label": "pre-trained",
        "name": "pre-trained",
        "on_downstream_set_pct": sum(before[i] for i in downstreams) / len(downstreams),
        "on_other_sets_pct": sum(others) / len(others),
    }
    arms = arms[arms["model"] == model]
    series = arms.groupby(["key", "variant", "setting"], sort=False)
    is_step = (series["alpha"].transform("count") > 1) & arms["alpha"].notna()
    line = series["method"].transform("first").where(is_step)
    steps = [f", α = {a:g}" if on else "" for a, on in zip(arms["alpha"], is_step, strict=True)]
    label = arms["method"] + steps
    name = label.where(arms["shown"], "")
    numbers = arms[["on_downstream_set_pct", "on_other_sets_pct", "alpha"]]
    data = numbers.assign(label=label, name=name, curve=line)[arms["shown"] | is_step]
    data = data.sort_values("curve", kind="stable", na_position="first")
    data = pandas.concat([pandas.DataFrame([first]), data], ignore_index=True)
    x, y = "on_downstream_set_pct", "on_other_sets_pct"
    (_, best), (_, adapted) = (extremes(data, name) for name in (y, x))
    return Figure(
        slug("trade-off", model),
        f"Mean accuracy on the set fine-tuned on against that on the other sets{results.of(model)},"
        " in percent.",
        f"Highest on the other sets: {best['label']}, {best[y]:.1f}%; highest on the set "
        f"fine-tuned on: {adapted['label']}, {adapted[x]:.1f}%.",
        data,
        charts.scatter(data, x, y, name="name", line="curve"),
    )


def chosen_on_its_set(results: Results) -> str:
    """A sentence that names the methods whose models were chosen by the very images that their
    accuracy on the set fine-tuned on is of; empty where there are none."""
    rows = [of for key, of in results.record.settings.items() if key.split(",")[0] == "Rows"]
    names = dict.fromkeys(
        str(results.record.methods.get(method, method))
        for by_method in rows
        for method, options in by_method.items()
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
