"""Choose training settings on held-out images, for campaigns that vary some.

The choice must not use the datasets that RI is measured on. It may use held-out images of the
downstream dataset, which RI does not count. A campaign with `trials`, or that varies keys of
`optimizer` or `train`, thus tunes every method equally.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas

from engine.measures.groups import HALVES
from engine.measures.rows import TRIAL
from engine.measures.tables import extremes
from engine.report.results import Results
from engine.report.text import counted, signed

TRAINING = {"optimizer", "train", TRIAL}  # sections that tuning varies
HELD_OUT = "held_out_accuracy_pct"
CELL = ["method", "downstream"]
SELECTION = (
    "mRI is measured on the test datasets. Picking the setting with the highest mRI would select "
    "on the test datasets, so this report calls none the best."
)


class Tuned(NamedTuple):
    """methods: one row per method, best first: means over the downstream datasets, for the chosen
    settings and for the recipe's setting if it is among them. choices: one row per method and
    downstream dataset. rules: one row per rule and method, as `_by_rule`. settings: number of
    settings per method."""

    methods: pandas.DataFrame
    choices: pandas.DataFrame
    rules: pandas.DataFrame
    settings: int

    @property
    def finding(self) -> str:
        """The result in a sentence."""
        first, is_alone = self.methods.iloc[0], len(self.methods) == 1
        plain = first["default_mRI_pts"]
        points = f"{signed(first['tuned_mRI_pts'])} points"
        return (
            f"Tuned over {counted('setting', self.settings)} on held-out images, {first['method']} "
            f"{'has an mRI of' if is_alone else 'has the highest mRI:'} {points}"
            + ("" if pandas.isna(plain) else f" ({signed(plain)} with its recipe's setting)")
        )

    @property
    def effect(self) -> str:
        """What the choice changes, or which part of the settings it takes, in a sentence."""
        gains = self.methods.dropna(subset="gain_pts")
        if len(gains) > 1:
            least, most = extremes(gains, "gain_pts")
            ends = (f"{signed(of['gain_pts'])} ({of['method']})" for of in (least, most))
            return f"Tuning on held-out images changes mRI by {' to '.join(ends)} points"
        taken = self.choices["setting"].nunique()
        return (
            f"Of {counted('setting', self.settings)}, {taken} {'is' if taken == 1 else 'are'} best "
            "on held-out images for some method or dataset"
        )


def is_varied(results: Results) -> bool:
    """Whether the campaign is a sweep, or a method was trained in several settings, so that picking
    the best row would select on the test datasets."""
    settings = results.shown.groupby(["model", "key"])["setting"].nunique()
    return results.record.sweep is not None or bool((settings > 1).any())


def tuned(results: Results) -> Tuned | None:
    """None if no training setting varies, or no images are held out."""
    arms = _arms(results)
    if arms.empty or not results.record.holdout:
        return None
    chosen, settings = _chosen(arms, HELD_OUT), arms["setting"].nunique()
    return Tuned(_summary(arms, chosen), chosen, _by_rule(arms, chosen), settings)


def _chosen(arms: pandas.DataFrame, by: str) -> pandas.DataFrame:
    """For each method and downstream dataset, the row with the highest value of a column."""
    return arms.loc[arms.groupby(CELL, sort=False)[by].idxmax()]


def _arms(results: Results) -> pandas.DataFrame:
    """One row per method, setting and downstream dataset: `HELD_OUT` and its `groups.HALVES` in
    percent, RI_pts, and is_plain, whether the setting is the recipe's. Empty if other keys vary."""
    shown, cells = results.shown, results.cells
    recipes = {row.method: {**row.settings, TRIAL: 0} for row in results.record.rows}
    settings = list(map(results.setting, shown["arm"]))
    sections = {key.partition(".")[0] for setting in settings for key in setting}
    is_tuned = all(settings) and (sections <= TRAINING or results.record.sweep is not None)
    if len(results.models) > 1 or not is_tuned:
        return pandas.DataFrame()
    arms = shown[["arm", "setting"]].assign(
        method=shown["key"].map(results.record.methods),
        is_plain=[
            setting.items() <= recipes.get(key, {}).items()
            for key, setting in zip(shown["key"], settings, strict=True)
        ],
    )
    on_downstream = cells[cells["on_downstream"]].groupby(["arm", "downstream"], sort=False)
    accuracy = on_downstream["accuracy"].mean().reset_index()
    ri = results.ri[["arm", "downstream", "RI_pts"]].merge(arms, on="arm")
    ri = ri.merge(accuracy.rename(columns={"accuracy": HELD_OUT}), on=["arm", "downstream"])
    return ri.merge(results.halves, on=["arm", "downstream"], how="left")


def _summary(arms: pandas.DataFrame, chosen: pandas.DataFrame) -> pandas.DataFrame:
    """As `Tuned.methods`."""
    tuned, plain = (
        rows.groupby("method", sort=False)[["RI_pts", HELD_OUT]].mean()
        for rows in (chosen, arms[arms["is_plain"]])
    )
    plain = plain.reindex(tuned.index)
    table = pandas.DataFrame(
        {
            "settings": arms.groupby("method", sort=False)["setting"].nunique(),
            "tuned_mRI_pts": tuned["RI_pts"],
            "default_mRI_pts": plain["RI_pts"],
            "gain_pts": tuned["RI_pts"] - plain["RI_pts"],
            "tuned_held_out_accuracy_pct": tuned[HELD_OUT],
            "default_held_out_accuracy_pct": plain[HELD_OUT],
        }
    )
    return table.sort_values("tuned_mRI_pts", ascending=False, kind="stable").reset_index()


def _by_rule(arms: pandas.DataFrame, usual: pandas.DataFrame) -> pandas.DataFrame:
    """What each rule would choose, one row per rule and method, means over the downstream datasets:
    mRI_pts, accuracy_pct on the held-out images that the rule measures on, and same_choice_pct, how
    often the rule chooses the usual setting."""
    first, second = HALVES
    rules = {  # by name: the columns that choose, each with the column that is reported
        "all held-out images (this report)": [(HELD_OUT, HELD_OUT)],
        "one half of the held-out images": [(first, second), (second, first)],
        "datasets of RI (not allowed)": [("RI_pts", HELD_OUT)],
    }
    if arms[HALVES].isna().any(axis=None):  # too few images
        del rules["one half of the held-out images"]
    means, usual = {}, usual.set_index(CELL)
    for rule, pairs in rules.items():
        parts = []
        for by, reported in pairs:
            chosen = _chosen(arms, by).set_index(CELL)
            same = chosen["setting"] == usual.loc[chosen.index, "setting"]
            numbers = {"mRI_pts": chosen["RI_pts"], "accuracy_pct": chosen[reported]}
            parts.append(pandas.DataFrame(numbers).assign(same_choice_pct=100.0 * same))
        means[rule] = pandas.concat(parts).groupby("method", sort=False).mean()
    return pandas.concat(means, names=["rule"]).reset_index()
