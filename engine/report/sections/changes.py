"""Changes in accuracy: one map per method, and the upstream dataset."""

from __future__ import annotations

import pandas

from engine.measures.rows import PRE, trained_sets
from engine.measures.tables import extremes, groups, ordered, rows, with_ends
from engine.recipe.schema import RIDGE
from engine.report import charts
from engine.report.columns import between
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted, signed, slug

CHANGE = "change_pts"
NUMBERS = ["before_pct", "accuracy_pct", "accuracy_low", "accuracy_high", CHANGE]
CELL = ["model", "method", "variant", "evaluated_on", *NUMBERS]
PUBLISHED = ["published_accuracy_pct", "published_change_pts"]


def map_of_fine_tuning(results: Results) -> Section | None:
    """The map of plain fine-tuning, unfolded. None without such a row, or with several."""
    if (arm := _fine_tuning(results)) is None or arm not in (figures := _maps(results)):
        return None
    cells = _elsewhere(results)
    of_ri = cells["evaluated_on"].isin(results.grid.sets) & (cells["arm"] == arm)
    ends = [
        f"{signed(row[CHANGE])} ({row['downstream']} → {row['evaluated_on']})"
        for row in extremes(cells[of_ri], CHANGE)
    ]
    return Section(
        "map",
        f"Fine-tuning on one dataset changes accuracy on another by {' to '.join(ends)} points",
        _legend(results),
        figures=[figures[arm]],
        is_open=True,
    )


def maps(results: Results) -> Section | None:
    """One map per model and method: downstream datasets by datasets evaluated on."""
    if not (figures := _maps(results)):
        return None
    return Section(
        "maps",
        "On single datasets, accuracy changes by "
        f"{between(_elsewhere(results), CHANGE, 'method', 'evaluated_on')}",
        _legend(results),
        figures=[figure for arm, figure in figures.items() if arm != _fine_tuning(results)],
        tables=[_by_dataset(results), _before(results)],
    )


def _fine_tuning(results: Results) -> int | None:
    """The arm of plain fine-tuning, if tables show exactly one."""
    arms = results.shown.loc[results.shown["key"] == FINE_TUNE, "arm"]
    return int(arms.iloc[0]) if len(arms) == 1 else None


def _elsewhere(results: Results) -> pandas.DataFrame:
    """The cells of datasets that a model was not fine-tuned on."""
    cells = results.cells[results.cells["downstream"].isin(results.grid.downstreams)]
    return cells[~cells["on_downstream"]]


def _legend(results: Results) -> str:
    """How to read a map."""
    is_held_out = results.record.holdout
    holdout = "its held-out images" if is_held_out else "its training images (nothing held out)"
    return (
        "Change in accuracy from the pretrained model, in points (colours saturate at "
        f"±{charts.scale_end(_elsewhere(results)[CHANGE]):.0f}). Rows: downstream dataset. "
        "Columns: dataset evaluated on, those outside RI last. Outlined: accuracy (%) on datasets "
        f"that the model was fine-tuned on, on {holdout}."
    )


def _maps(results: Results) -> dict[int, Figure]:
    """The map of every arm that tables show, by arm, with one scale of colours."""
    cells = results.cells[results.cells["downstream"].isin(results.grid.downstreams)]
    end = charts.scale_end(_elsewhere(results)[CHANGE])
    sets, figures = ("evaluated_on", "downstream"), {}
    for number, (_, of_arm) in enumerate(groups(cells, "arm"), start=1):
        arm, model, method = of_arm[["arm", "model", "method"]].iloc[0]
        # From the easiest datasets to the hardest.
        order = {"downstream": results.downstreams(model), "evaluated_on": results.before(model)}
        of_arm = ordered(of_arm, **order)
        data = of_arm[["model", "method", "downstream", "evaluated_on", *NUMBERS]]
        title = f"{method}{results.of(model)}"
        changes = between(of_arm[~of_arm["on_downstream"]], CHANGE, *sets)
        words = f"{title}: change in accuracy from {changes}."
        spec = charts.heat(data, *sets, CHANGE, on_downstream="accuracy_pct", end=end)
        figures[arm] = Figure(slug(f"map {number:02}", method), title, words, data, spec)
    return figures


def _by_dataset(results: Results) -> Table:
    """Mean accuracy, with one row per method, best mRI first, and one column per dataset."""
    numbers = results.grid.numbers.query("downstream == '' and evaluated_on != ''")
    parts = []
    for model in results.models:
        wide = numbers.pivot_table("accuracy_pct", "arm", "evaluated_on", sort=False)
        wide = wide[[name for name in results.before(model) if name in wide]].add_suffix("_pct")
        parts.append(results.ranked(model)[["arm", "model", "method"]].join(wide, on="arm"))
    data = pandas.concat(parts).drop(columns="arm").rename_axis(columns=None)
    before = results.before(results.models[0])
    above = {f"{name}_pct": accuracy for name, accuracy in before.items()}
    return Table(
        "accuracy-by-dataset",
        "Accuracy by dataset in percent, averaged over the models not fine-tuned on the dataset.",
        data,
        [name for name in map(str, data) if name.endswith("_pct")],
        above={"pretrained": above} if len(results.models) == 1 else {},
    )


def _before(results: Results) -> Table:
    """The pretrained models' accuracy, and the published accuracy if known."""
    names, numbers = ["model", "evaluated_on"], ["accuracy_pct", "accuracy_low", "accuracy_high"]
    order = [(model, name) for model in results.models for name in results.before(model)]
    pre = results.grid.named(results.grid.numbers).query(f"method == '{PRE}' and downstream == ''")
    pre = pre.set_index(names)[numbers]
    table = pre.loc[[key for key in order if key in pre.index]].reset_index()
    keys = table[names].itertuples(index=False)
    known = [results.published.of(model).before.get(name) for model, name in keys]
    table["published_pct"] = pandas.Series(known, dtype=float)
    return Table(
        "pretrained-accuracy",
        "Accuracy of the pretrained model in percent, with 95% intervals.",
        table.dropna(axis=1, how="all"),
    )


def forgotten(results: Results) -> Section | None:
    """The change in upstream accuracy after fine-tuning on other datasets."""
    shown, change = results.shown, "change_upstream_pts"
    if change not in shown:
        return None
    means = shown[["model", "method", *with_ends(change)]].dropna(subset=change)
    upstream, losing = results.record.upstream, (means["change_upstream_high"] < 0).sum()
    return Section(
        "upstream-change",
        f"{losing} of {counted('method', len(means))} lose accuracy on {upstream}",
        f"Change in accuracy on {upstream}, in points; the 95% interval of a method that loses "
        "accuracy is below 0. RI excludes this dataset.",
        figures=charts.by_model(
            results,
            "upstream-change",
            "Mean over the downstream datasets, with 95% intervals",
            means,
            (change, "method"),
        ),
    )


def further(results: Results) -> Section | None:
    """Accuracy on the datasets of `dataset.evaluate_on`."""
    names = results.record.evaluate_on
    rows = results.grid.numbers.query("downstream == ''")
    rows = results.shown[["arm", "model", "method"]].merge(rows, on="arm")
    data = ordered(rows[rows["evaluated_on"].isin(names)], evaluated_on=names)
    if data.empty:
        return None
    data = data[["model", "method", "evaluated_on", *NUMBERS, "change_low", "change_high"]]
    return Section(
        "further",
        f"Outside RI, accuracy changes by {between(data, CHANGE, 'method', 'evaluated_on')}",
        "RI and mRI exclude these datasets.",
        tables=[
            Table(
                "further",
                "Accuracy on further datasets before and after fine-tuning, in percent, and its "
                "change in points, with 95% intervals; means over models not fine-tuned on the "
                "dataset.",
                data,
            )
        ],
    )


def on_probe_sets(results: Results) -> Section | None:
    """The change in accuracy on probe sets, whose classes no model's head has."""
    if results.probe_sets.empty:
        return None
    arm = ["model", "key", "variant", "alpha", "setting"]
    numbers = results.probe_sets.rename(columns={"method": "key"})
    shown = results.shown[[*arm, "method"]].merge(numbers, on=arm)
    ends = ["accuracy_low", "accuracy_high", CHANGE, "change_low", "change_high"]
    data = shown[["model", "method", "evaluated_on", "before_pct", "accuracy_pct", *ends]]
    return Section(
        "probe-sets",
        f"On other label spaces, accuracy changes by "
        f"{between(data, CHANGE, 'method', 'evaluated_on')}",
        "A linear head is fitted in closed form on the features of each dataset's training images, "
        "before and after fine-tuning, and judged on held-out images: ridge regression on one-hot "
        f"targets, with an L2 penalty of {RIDGE:g} times the features' mean variance. RI excludes "
        "these datasets, and ensembles have no features of their own.",
        tables=[
            Table(
                "probe-sets",
                "Accuracy in percent and its change in points, averaged over the downstream "
                "datasets, with 95% intervals.",
                data,
            )
        ],
    )


def tuned_outside(results: Results) -> Section | None:
    """Fine-tuning on a dataset outside RI, such as upstream, compared with published numbers."""
    ri, columns = {*results.grid.sets}, results.cells["downstream"].unique()
    outside = [name for name in filter(None, columns) if ri.isdisjoint(trained_sets(name))]
    if not outside:
        return None
    upstream = outside[0]
    cells = results.cells[results.cells["downstream"] == upstream]
    data = pandas.concat([_beside_published(results, *of) for of in groups(cells, "model")])
    source = results.published.source
    notes = [f"Published numbers: {source}, for pretrained models that it includes."] * bool(source)
    notes += [f"Columns of {', '.join(outside[1:])}: accuracy.csv."] * bool(outside[1:])
    return Section(
        "upstream",
        f"After fine-tuning on {upstream}, accuracy changes by "
        f"{between(data, CHANGE, 'method', 'evaluated_on')}",
        " ".join(notes),
        figures=charts.by_model(
            results,
            "upstream",
            "Change in accuracy on each dataset, in points (blue: gain, orange: loss)",
            data[CELL].drop(columns="variant"),
            (CHANGE, "method", "evaluated_on"),
            lambda rows: charts.heat(rows, "evaluated_on", "method", CHANGE),
        ),
        tables=[
            Table(
                "upstream",
                f"Accuracy after fine-tuning on {upstream}, in percent with 95% intervals, and its "
                "change in points.",
                data[[*CELL, *PUBLISHED]].dropna(axis=1, how="all"),
            )
        ],
    )


def _beside_published(results: Results, model: str, cells: pandas.DataFrame) -> pandas.DataFrame:
    """One row per arm, best mRI first, and dataset, upstream first; with published numbers of
    methods without other settings."""
    key, entry = results.ranked(model).set_index("arm")["key"], results.published.of(model)
    sets = [name for name in results.before(model) if name in results.grid.sets]
    names = [*filter(None, [results.record.upstream]), *sets]
    data = ordered(cells[cells["evaluated_on"].isin(names)], arm=key.index, evaluated_on=names)
    is_same = {row.arm for row in rows(results.ranked(model)) if results.is_published(row)}
    after_of = [
        entry.after(row.downstream, key[row.arm]).get(row.evaluated_on) for row in rows(data)
    ]
    after = pandas.Series(after_of, data.index, float).where(data["arm"].isin(is_same))
    before = data["evaluated_on"].map(entry.before).astype(float)
    return data.assign(**dict(zip(PUBLISHED, (after, after - before), strict=True)))
