"""Equal tuning: each method in the same settings of training, chosen on held-out images.

A campaign that varies keys of `optimizer` or `train` gives every row the same number of settings.
For each set fine-tuned on, a row's setting is the one with the highest accuracy on that set's
held-out images, which RI does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas

from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.text import signed

TRAINING = ("optimizer.", "train.")
HELD_OUT = "held_out_accuracy_pct"
NUMBERS = ["RI_pts", HELD_OUT]


def section(results: Results) -> Section | None:
    """None where nothing of training varies, or nothing is held out to choose on."""
    arms = arms_of(results)
    if arms.empty or not results.record.holdout:
        return None
    chosen, table = choices(arms, ["method", "downstream"]), summary(arms)
    first, settings = table.iloc[0], arms["setting"].nunique()
    statements = [
        "The numbers have no intervals: these would have to draw the choice anew with the images."
    ]
    if hours := _hours(results):
        statements.append(
            f"The jobs of all settings took {sum(hours.values()):.2f} hours, those of one setting "
            f"{min(hours.values()):.2f} to {max(hours.values()):.2f}."
        )
    plain = first["mRI_plain_pts"]
    of_recipe = "" if pandas.isna(plain) else f", {signed(plain)} as its recipe has it"
    return Section(
        "tuning",
        f"With {settings} settings for every method, {first['method']} has the highest mRI: "
        f"{signed(first['mRI_tuned_pts'])} points{of_recipe}",
        "Every method was trained in the same number of settings. For each set fine-tuned on, its "
        "setting is the one with the highest accuracy on that set's held-out images; no set that "
        "RI counts is seen by the choice. Above, each setting is a row: to pick one there is "
        "selection on the test sets.",
        statements=statements,
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
                chosen[["method", "downstream", "setting", HELD_OUT, "RI_pts"]],
            ),
        ],
    )


def held_out(results: Results) -> pandas.DataFrame:
    """RI_pts by arm and set fine-tuned on, beside accuracy on that set in percent."""
    keys, cells = ["arm", "downstream"], results.cells
    cells = cells[cells["downstream"] == cells["evaluated_on"]]
    accuracy = cells[[*keys, "accuracy"]].rename(columns={"accuracy": HELD_OUT})
    return results.ri.merge(accuracy, on=keys)


def choices(rows: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """Of each group, the row with the highest held-out accuracy (of equal ones the first)."""
    best = rows.groupby(list(by), sort=False)[HELD_OUT].idxmax()
    return rows.loc[best].reset_index(drop=True)


def arms_of(results: Results) -> pandas.DataFrame:
    """A row a method, setting and set fine-tuned on: `HELD_OUT` in percent, RI_pts, and is_plain,
    whether the setting is what the method's recipe says. Empty where nothing of training varies,
    or other things do too."""
    recipes, shown = dict(results.recipes), results.shown
    if len(results.models) > 1 or not set(shown["key"]) <= set(recipes):
        return pandas.DataFrame()
    is_plain = []
    for key, setting in zip(shown["key"], shown["setting"], strict=True):
        values = dict(word.split("=", 1) for word in setting.split(",") if "=" in word)
        if not values or not all(name.startswith(TRAINING) for name in values):
            return pandas.DataFrame()
        recipe = recipes[key]
        pairs = [(value, recipe.get(name.partition(".")[2])) for name, value in values.items()]
        is_plain.append(all(_same(*pair) for pair in pairs))
    titles = shown["key"].map(results.record.methods)
    arms = shown[["arm", "setting"]].assign(method=titles, is_plain=is_plain)
    return held_out(results).drop(columns="method").merge(arms, on="arm")


def summary(arms: pandas.DataFrame) -> pandas.DataFrame:
    """A row a method, best tuned mRI first: means over the sets fine-tuned on of the chosen
    settings, and of the recipe's where that is among them."""
    tuned, plain = (
        rows.groupby("method", sort=False)[NUMBERS].mean()
        for rows in (choices(arms, ["method", "downstream"]), arms[arms["is_plain"]])
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
    ).loc[tuned.index]
    return table.sort_values("mRI_tuned_pts", ascending=False, kind="stable").reset_index()


def _hours(results: Results) -> dict[str, float]:
    """Hours of the columns' jobs, by setting; nothing where no attempt is known."""
    hours: dict[str, float] = {}
    for attempt in results.record.attempts:
        _, comma, setting = attempt.job.partition(",")
        if comma:
            hours[setting] = hours.get(setting, 0.0) + attempt.hours
    return hours


def _same(word: str, value: Any) -> bool:
    """Whether a setting's word is the value that a recipe has."""
    try:
        return float(word) == float(value)
    except (TypeError, ValueError):
        return word == str(value)
