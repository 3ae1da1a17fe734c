"""Settings of training: the variants of a sweep, and the ones that held-out images choose.

RI is measured on sets that a choice must not see, so no variant is called best by it. Images that
are held out of the set fine-tuned on may choose, since RI does not count them. A campaign that
varies keys of `optimizer` or `train` so tunes every method equally.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas

from engine.report import charts
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, signed

TRAINING = r"((optimizer|train)\.[\w.]+=[^=]*)+"  # a setting that varies nothing else
HELD_OUT = "held_out_accuracy_pct"
CELL = ["method", "downstream"]
SELECTION = (
    "mRI is measured on the test sets. To pick the variant with the highest mRI is selection on "
    "the test sets, so this report calls none the best."
)


def variants(results: Results) -> Section | None:
    """None where the campaign is no sweep."""
    if results.record.sweep is None:
        return None
    keys, data = _variants(results)
    varied = [key for key in keys if data[key].nunique() > 1]
    (title,) = results.record.methods.values()
    return Section(
        "sweep",
        f"mRI is from {signed(data['mRI_pts'].min())} to {signed(data['mRI_pts'].max())} points",
        f"{counted('variant', len(data))} of {title} in {', '.join(keys) or 'its settings'}, each "
        f"fine-tuned on {counted('set', len(results.record.downstreams))}; means over "
        f"{counted('seed', len(results.grid.seeds))}. {SELECTION} Images that are held out of the "
        "sets fine-tuned on (dataset.holdout) may choose, since RI does not count them.",
        figures=by_model(
            results,
            "sweep",
            "mRI of each variant in points, with its 95% interval",
            data[["mRI_pts", "mRI_low", "mRI_high"]].assign(
                model=results.models[0],
                method=[
                    ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in varied) or title
                    for row in data.to_dict("records")
                ],
            ),
            ("mRI_pts", "method"),
            lambda rows: charts.bars(rows, "mRI_pts"),
        ),
        tables=[
            Table(
                "sweep-variants",
                "Every variant, in the order of the sweep: mRI with its 95% interval and RI by set "
                "fine-tuned on, in points; mean accuracy on that set, in percent.",
                data,
            )
        ],
        is_open=True,
    )


def _variants(results: Results) -> tuple[list[str], pandas.DataFrame]:
    """The keys of the sweep; and a row a variant, in its order, with the keys' values: mRI with its
    interval, RI by set fine-tuned on, in points, and mean accuracy in percent on the set fine-tuned
    on, where that is evaluated."""
    sweep = results.record.sweep or {}
    values = pandas.DataFrame([*sweep.values()])
    arms = results.shown.set_index("setting").loc[[*sweep]].reset_index(drop=True)
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])].add_prefix("RI ").add_suffix("_pts")
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide, "on_downstream_set_pct"]
    table = arms.join(wide, on="arm")
    table = values.join(table[[name for name in numbers if name in table]])
    return list(map(str, values)), table


def tuned(results: Results) -> Section | None:
    """None where nothing of training varies, or nothing is held out to choose on."""
    arms = _arms(results)
    if arms.empty or not results.record.holdout:
        return None
    chosen = arms.loc[arms.groupby(CELL, sort=False)[HELD_OUT].idxmax()]
    table = _summary(arms, chosen)
    first, settings = table.iloc[0], arms["setting"].nunique()
    plain = first["mRI_plain_pts"]
    return Section(
        "tuning",
        f"With {counted('setting', settings)} for every method, {first['method']} "
        f"{'has the highest mRI:' if len(table) > 1 else 'has an mRI of'} "
        f"{signed(first['mRI_tuned_pts'])} points"
        + ("" if pandas.isna(plain) else f", {signed(plain)} as its recipe has it"),
        "Every method was trained in the same number of settings. For each set fine-tuned on, its "
        "setting is the one with the highest accuracy on that set's held-out images; no set that "
        "RI counts is seen by the choice. The numbers have no intervals: these would have to draw "
        "the choice anew with the images. Elsewhere on this page each setting is a row: to pick "
        "one there is selection on the test sets.",
        tables=[
            Table(
                "tuning",
                "mRI of the chosen settings and of the recipe's, in points, and the gain; mean "
                "accuracy on held-out images of the sets fine-tuned on, in percent.",
                table,
                ("mRI_tuned_pts", "mRI_plain_pts"),
            ),
            Table(
                "tuning-choices",
                "By method and set fine-tuned on: the chosen setting (of equal ones the first), "
                "its accuracy on held-out images in percent, and its RI in points.",
                chosen[[*CELL, "setting", HELD_OUT, "RI_pts"]],
            ),
        ],
    )


def _arms(results: Results) -> pandas.DataFrame:
    """A row a method, setting and set fine-tuned on: `HELD_OUT` in percent, RI_pts, and is_plain,
    whether the setting is what the method's recipe says. Empty where other things vary."""
    shown, recipes, cells = results.shown, dict(results.recipes), results.cells
    varied = ".+" if results.record.sweep is not None else TRAINING
    if len(results.models) > 1 or not shown["setting"].str.fullmatch(varied).all():
        return pandas.DataFrame()
    arms = shown[["arm", "setting"]].assign(
        method=shown["key"].map(results.record.methods),
        is_plain=[
            _is_plain(setting, recipes.get(key, {}))
            for key, setting in zip(shown["key"], shown["setting"], strict=True)
        ],
    )
    on_downstream = cells[cells["downstream"] == cells["evaluated_on"]]
    accuracy = on_downstream[["arm", "downstream", "accuracy"]]
    ri = results.ri[["arm", "downstream", "RI_pts"]].merge(arms, on="arm")
    return ri.merge(accuracy.rename(columns={"accuracy": HELD_OUT}), on=["arm", "downstream"])


def _is_plain(setting: str, recipe: Mapping[str, Any]) -> bool:
    """Whether every word of a setting is what the recipe says."""
    words = (word.partition("=") for word in setting.split(","))
    return all(_number(x) == _number(recipe.get(key.partition(".")[2])) for key, _, x in words)


def _number(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _summary(arms: pandas.DataFrame, chosen: pandas.DataFrame) -> pandas.DataFrame:
    """A row a method, best tuned mRI first: means over the sets fine-tuned on of the chosen
    settings, and of the recipe's where that is among them."""
    tuned, plain = (
        rows.groupby("method", sort=False)[["RI_pts", HELD_OUT]].mean()
        for rows in (chosen, arms[arms["is_plain"]])
    )
    plain = plain.reindex(tuned.index)
    table = pandas.DataFrame(
        {
            "settings": arms.groupby("method", sort=False)["setting"].nunique(),
            "mRI_tuned_pts": tuned["RI_pts"],
            "mRI_plain_pts": plain["RI_pts"],
            "gain_pts": tuned["RI_pts"] - plain["RI_pts"],
            "held_out_tuned_pct": tuned[HELD_OUT],
            "held_out_plain_pct": plain[HELD_OUT],
        }
    )
    return table.sort_values("mRI_tuned_pts", ascending=False, kind="stable").reset_index()
