"""Equal tuning: each method in the same settings of training, chosen on held-out images.

A campaign that varies keys of `optimizer` or `train` gives every row the same number of settings.
For each set fine-tuned on, a row's setting is the one with the highest accuracy on that set's
held-out images, which RI does not count.
"""

from __future__ import annotations

from typing import Any

import pandas

from engine.measures import tables
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.text import counted, signed

ROWS = "Rows"  # of a record's settings: what each row's recipe says, by its key
TRAINING = ("optimizer.", "train.")
NO_INTERVAL = (
    "The numbers have no intervals: these would have to draw the choice anew with the images."
)


def section(results: Results) -> Section | None:
    """None where nothing of training varies, or nothing is held out to choose on."""
    arms = arms_of(results)
    if arms.empty or not results.record.holdout:
        return None
    chosen, table = choices(arms), summary(arms)
    first, settings = table.iloc[0], arms["setting"].nunique()
    plain = arms[arms["plain"]].groupby("method", sort=False)["RI_pts"].mean()
    statements = [
        f"Tuned on held-out images, {first['method']} has the highest mRI, "
        f"{signed(first['mRI_tuned_pts'])} points."
        + (
            f" As its recipe has it: {signed(first['mRI_plain_pts'])}."
            if first["method"] in plain
            else ""
        ),
        NO_INTERVAL,
    ]
    if hours := _hours(results):
        statements.insert(
            1,
            f"The jobs of all settings took {sum(hours.values()):.2f} hours, those of one setting "
            f"{min(hours.values()):.2f} to {max(hours.values()):.2f}.",
        )
    return Section(
        "tuning",
        f"Equal tuning: {counted('setting', settings)} of every method",
        "Every method was trained in the same number of settings. For each set fine-tuned on, its "
        "setting is the one with the highest accuracy on that set's held-out images; no set that "
        "RI counts is seen by the choice. Above, each setting is a row: to pick one there is "
        "selection on the test sets.",
        statements=statements,
        tables=[
            Table(
                "tuning",
                "By method: how many settings were tried; mRI of the chosen ones and of the "
                "recipe's, in points, and the gain; mean accuracy on held-out images of the sets "
                "fine-tuned on, in percent.",
                table,
                ("mRI_tuned_pts", "mRI_plain_pts"),
            ),
            Table(
                "tuning-choices",
                "By method and set fine-tuned on: the chosen setting (of equal ones the first), "
                "its accuracy on held-out images in percent, and its RI in points.",
                chosen,
            ),
        ],
    )


def arms_of(results: Results) -> pandas.DataFrame:
    """A row a method, setting and set fine-tuned on: held_out_accuracy_pct in percent, RI_pts, and
    plain, whether the setting is what the method's recipe says. Empty where nothing of training
    varies, or other things do too."""
    recipes: dict[str, dict[str, Any]] = results.record.settings.get(ROWS, {})
    rows = []
    keys = ["arm", "downstream"]
    cells = results.cells[results.cells["downstream"] == results.cells["evaluated_on"]]
    table = results.ri.merge(cells[[*keys, "accuracy"]], on=keys)
    table = table.merge(results.shown[["arm", "key", "setting"]], on="arm")
    for row in tables.rows(table) if len(results.models) == 1 else ():
        words = dict(word.split("=", 1) for word in row.setting.split(",") if "=" in word)
        is_tuned = words and all(name.startswith(TRAINING) for name in words)
        if not is_tuned or row.key not in recipes:
            return pandas.DataFrame()
        of_recipe = {name: recipes[row.key].get(name.partition(".")[2]) for name in words}
        rows.append(
            {
                "method": results.record.methods[row.key],
                "downstream": row.downstream,
                "setting": row.setting,
                "held_out_accuracy_pct": row.accuracy,
                "RI_pts": row.RI_pts,
                "plain": all(_same(words[name], value) for name, value in of_recipe.items()),
            }
        )
    return pandas.DataFrame(rows)


def choices(arms: pandas.DataFrame) -> pandas.DataFrame:
    """By method and set fine-tuned on, the setting with the highest held-out accuracy (of equal
    ones the first)."""
    by = arms.groupby(["method", "downstream"], sort=False)["held_out_accuracy_pct"]
    return arms.loc[by.idxmax()].drop(columns="plain").reset_index(drop=True)


def summary(arms: pandas.DataFrame) -> pandas.DataFrame:
    """A row a method, best tuned mRI first: means over the sets fine-tuned on of the chosen
    settings, and of the recipe's where that is among them."""
    numbers = ["RI_pts", "held_out_accuracy_pct"]
    tuned = choices(arms).groupby("method", sort=False)[numbers].mean()
    plain = arms[arms["plain"]].groupby("method", sort=False)[numbers].mean().reindex(tuned.index)
    table = pandas.DataFrame(
        {
            "settings": arms.groupby("method", sort=False)["setting"].nunique(),
            "mRI_tuned_pts": tuned["RI_pts"],
            "mRI_plain_pts": plain["RI_pts"],
            "gain_pts": tuned["RI_pts"] - plain["RI_pts"],
            "held_out_tuned_pct": tuned["held_out_accuracy_pct"],
            "held_out_plain_pct": plain["held_out_accuracy_pct"],
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
