"""mRI by a varied key, of a sweep's configurations, and at settings chosen on held-out images."""

from __future__ import annotations

import math

import pandas

from engine.measures import tables
from engine.measures.rows import Setting
from engine.report import charts, tuning
from engine.report.columns import between
from engine.report.results import FINE_TUNE, Results, title
from engine.report.section import Section, Table
from engine.report.text import counted, listed, signed

MRI, HELD_OUT, CHOSEN = "mRI_pts", "downstream_accuracy_pct", "chosen"
NUMBERS = [*tables.with_ends(MRI), *tables.with_ends(HELD_OUT)]
AXES = {  # by key: the name of its table and of its figures, and what its values are
    "optimizer.lr": ("rates", "learning rate"),
    "dataset.shots": ("shots", "images per class"),
    "dataset.fraction": ("fractions", "fraction of the training images"),
}
SUBSETS = (
    "Training on a subset has as many epochs as on all images, so it takes fewer steps. With the "
    "same seed, smaller subsets are contained in larger ones. The evaluated images are the same."
)
TUNED = (
    "Every method was trained in the same number of settings. For each downstream dataset, its "
    "setting is the one with the highest accuracy on held-out images; the choice uses no dataset "
    "that RI counts. These numbers have no intervals, which would have to repeat the choice in "
    "every draw."
)


def sweep(results: Results) -> Section | None:
    """The configurations of a sweep; None for other campaigns."""
    if results.record.sweep is None:
        return None
    keys, data = _configurations(results)
    varied = [key for key in keys if data[key].nunique() > 1]
    (title,) = results.record.methods.values()
    return Section(
        "sweep",
        f"mRI ranges from {signed(data['mRI_pts'].min())} to {signed(data['mRI_pts'].max())} "
        "points",
        f"{counted('configuration', len(data))} of {title} in {', '.join(keys) or 'its settings'}, "
        f"each fine-tuned on {counted('dataset', len(results.record.downstreams))}; means over "
        f"{counted('seed', len(results.grid.seeds))}. {tuning.SELECTION} Held-out images of the "
        "downstream datasets (dataset.holdout) may choose, because RI does not count them.",
        figures=charts.by_model(
            results,
            "sweep",
            "mRI of each configuration in points, with 95% intervals",
            data[["mRI_pts", "mRI_low", "mRI_high"]].assign(
                model=results.models[0],
                method=[
                    Setting({key: row[key] for key in varied}).short or title
                    for row in data.to_dict("records")
                ],
            ),
            ("mRI_pts", "method"),
        ),
        tables=[
            Table(
                "sweep-configurations",
                "All configurations in the order of the sweep: mRI with 95% intervals and RI by "
                "downstream dataset, in points; mean downstream accuracy in percent.",
                data,
            )
        ],
        is_open=True,
    )


def _configurations(results: Results) -> tuple[list[str], pandas.DataFrame]:
    """The keys of the sweep, and one row per configuration in its order, with the keys'
    values: mRI with its interval and RI by downstream dataset, in points, and mean accuracy in
    percent on the downstream dataset, if evaluated."""
    sweep = results.record.sweep or []
    values = pandas.DataFrame(list(map(dict, sweep)))
    shown = results.shown
    arms = shown.set_index(shown["arm"].map(results.setting)).loc[sweep].reset_index(drop=True)
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])].add_prefix("RI ").add_suffix("_pts")
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide, "downstream_accuracy_pct"]
    table = arms.join(wide, on="arm")
    table = values.join(table[[name for name in numbers if name in table]])
    return list(map(str, values)), table


def section(results: Results) -> Section | None:
    """Every method by each key of `AXES` that has several values, and the tuned methods; None if
    there is neither."""
    found = {key: points(results, key) for key in AXES}
    found = {key: rows for key, rows in found.items() if rows["value"].nunique() > 1}
    tuned = tuning.tuned(results)
    if not found and tuned is None:
        return None
    ranges = [_range(results, key, rows) for key, rows in found.items()]
    text = [SUBSETS] * any(key.startswith("dataset.") for key in found)
    text += [TUNED] * (tuned is not None)
    text += [_leaders(results, model, rows) for rows in found.values() for model in results.models]
    text += [f"{words}." for words in ranges] * (tuned is not None) + [tuning.SELECTION]
    return Section(
        "varied",
        tuned.effect if tuned else "; ".join(ranges),
        "\n".join(filter(None, text)),
        figures=[
            figure
            for key, rows in found.items()
            for figure in charts.by_model(
                results,
                AXES[key][0],
                f"mRI by {AXES[key][1]}, with 95% intervals",
                rows[["model", "method", "value", "x", *tables.with_ends(MRI)]],
                (MRI, "method", "value"),
                lambda shown, axis=AXES[key][1]: charts.curve(
                    shown,
                    "x",
                    MRI,
                    "method",
                    x_title=axis,
                    ticks=dict(sorted(zip(shown["x"], shown["value"], strict=True))),
                ),
            )
        ],
        tables=[
            *(_by_value(results, key, rows) for key, rows in found.items()),
            *_tuned(results, tuned),
        ],
    )


def points(results: Results, key: str) -> pandas.DataFrame:
    """The shown arms whose setting contains the key, by method and value: the columns of
    `Results.arms`, `method` without the key, rest (the other varied keys), value as text, and x.
    `dataset.shots=0` means all images: its x is twice the largest number of images."""
    shown = results.shown
    number = shown["arm"].map(lambda arm: results.setting(arm).get(key)).astype(float)
    if key == "dataset.shots":
        number = number.replace(0, math.inf)
    rows = shown.assign(x=number).dropna(subset="x")
    arms = [results.grid.arms[arm] for arm in rows["arm"]]
    others = [arm._replace(setting=arm.setting.without(key)) for arm in arms]
    rows["rest"] = [str(arm.setting) for arm in others]
    rows["method"] = [title(arm, results.record.methods) for arm in others]
    rows["value"] = [f"{x:g}" if math.isfinite(x) else "all" for x in rows["x"]]
    rows["x"] = rows["x"].clip(upper=2 * rows["x"].where(rows["x"] < math.inf).max())
    order = {name: list(rows[name]) for name in ("model", "method")}
    return tables.ordered(rows, **order, x=sorted(rows["x"]))


def _range(results: Results, key: str, found: pandas.DataFrame) -> str:
    """The range of fine-tuning's mRI over the values of a key; without fine-tuning, a title."""
    axis = AXES[key][1]
    ranges = [
        f"{results.of(model)} from {between(rows, MRI, 'value')}"
        for model, rows in tables.groups(found[found["key"] == FINE_TUNE], "model")
    ]
    return f"By {axis}, fine-tuning's mRI ranges{','.join(ranges)}" if ranges else f"mRI by {axis}"


def _leaders(results: Results, model: str, found: pandas.DataFrame) -> str:
    """In how many settings each method has the highest mRI; empty for a single method."""
    of_model = found[found["model"] == model].dropna(subset=MRI)
    if of_model["key"].nunique() < 2:
        return ""
    first = of_model.loc[of_model.groupby("setting")[MRI].idxmax(), "key"].value_counts()
    names = [f"{results.record.methods.get(str(k), k)} in {n}" for k, n in first.items()]
    settings = counted("setting", of_model["setting"].nunique())
    return f"Highest mRI in {settings}{results.of(model)}: {listed(names)}."


def _by_value(results: Results, key: str, rows: pandas.DataFrame) -> Table:
    """One row per method and value. chosen: `held out` at each method's value of an option of
    training with the highest accuracy on held-out images."""
    name, axis = AXES[key]
    shown = rows[["model", "method", "value", *(number for number in NUMBERS if number in rows)]]
    caption = f"mRI in points and accuracy on the downstream datasets in percent, by {axis}."
    if key.partition(".")[0] in tuning.TRAINING and results.record.holdout and HELD_OUT in rows:
        best = rows.dropna(subset=HELD_OUT).groupby(["model", "key", "variant"])[HELD_OUT].idxmax()
        shown = shown.assign(**{CHOSEN: ["held out" * (k in set(best)) for k in rows.index]})
        caption += " chosen: highest mean accuracy on held-out images of the downstream datasets."
    return Table(name, caption, shown)


def _tuned(results: Results, found: tuning.Tuned | None) -> list[Table]:
    """The methods at the settings that held-out images choose, what other rules choose, and the
    settings."""
    if found is None:
        return []
    trials = [
        (results.record.methods[row.method], trial, str(values))
        for row in results.record.rows
        for trial, values in enumerate(row.trials)
        if values
    ]
    return [
        Table(
            "tuning",
            "mRI of the chosen and the recipe's settings in points, the gain, and mean accuracy on "
            "held-out images in percent, which is optimistic for the chosen settings (the highest "
            f"of {found.settings} on these images).",
            found.methods,
            ["tuned_mRI_pts", "default_mRI_pts"],
        ),
        Table(
            "tuning-rules",
            "mRI in points if another rule chose. All held-out images: accuracy in percent is that "
            "of the images that choose, hence optimistic. One half: the other half measures "
            "accuracy, which is not optimistic; copies of a photo are in the same half, and both "
            "halves choose in turn. Datasets of RI: not allowed, because the rule selects on the "
            "test datasets; no choice could reach a higher mRI. same_choice_pct: how often a rule "
            "chooses the same setting as this report.",
            found.rules,
        ),
        Table(
            "tuning-choices",
            "The chosen setting (the first of equal ones) by method and downstream dataset, its "
            "accuracy on held-out images in percent (optimistic), and its RI in points.",
            found.choices[[*tuning.CELL, "setting", tuning.HELD_OUT, "RI_pts"]],
        ),
        *[
            Table(
                "tuning-trials",
                "The values that each trial drew; trial 0 is the recipe. Averages and merges "
                "combine models of the same trial.",
                pandas.DataFrame(trials, columns=["method", "trial", "values"]),
            )
        ]
        * bool(trials),
    ]
