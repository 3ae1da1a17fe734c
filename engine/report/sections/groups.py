"""Accuracy by group of images, and on the worst group."""

from __future__ import annotations

import pandas

from engine.measures.groups import MACRO_F1
from engine.measures.rows import PRE
from engine.measures.tables import with_ends
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Section, Table

NAMES = ["model", "method", "evaluated_on"]
VALUE, CHANGE = with_ends("value_pct"), with_ends("change_pts")


def section(results: Results) -> Section | None:
    """Accuracy by group, the worst groups and macro F1; None if no dataset has further columns."""
    if results.groups.empty:
        return None
    data, every = worst_groups(results), _titled(results)
    every = every[every["column"] != MACRO_F1]
    return Section(
        "groups",
        f"On the worst groups, accuracy is {between(data, 'value_pct', 'method', 'evaluated_on')}",
        "A column of a dataset divides its images into groups; the worst has the lowest accuracy, "
        "and the interval is of the group's accuracy. By chance, the lowest of many small groups "
        "is too low. Macro F1: mean over the classes of a dataset's images.",
        tables=[
            Table(
                "worst-groups",
                "Accuracy, macro F1, and accuracy on the worst group (value_pct) with 95% "
                "intervals, in percent; means over models not fine-tuned on the dataset.",
                data,
            ),
            Table(
                "groups",
                "Accuracy by group in percent, and its change in points, with 95% intervals.",
                every[[*NAMES, "column", "group", "images", *VALUE, *CHANGE]],
            ),
        ],
    )


def worst_groups(results: Results) -> pandas.DataFrame:
    """One row per model, method, dataset and column: the group of the lowest accuracy, with the
    accuracy and the macro F1 on the dataset."""
    rows, keys = _titled(results), [*NAMES, "arm"]
    of_f1 = rows[rows["column"] == MACRO_F1].set_index(keys)[VALUE]
    of_f1 = of_f1.set_axis(with_ends("macro_f1_pct"), axis=1)
    accuracy = results.grid.numbers.query("downstream == ''")
    accuracy = accuracy.set_index(["arm", "evaluated_on"])[with_ends("accuracy_pct")]
    table = rows[rows["is_worst"]].join(of_f1, on=keys).join(accuracy, on=["arm", "evaluated_on"])
    return table[[*NAMES, *accuracy, *of_f1, "column", "group", "images", *VALUE]]


def _titled(results: Results) -> pandas.DataFrame:
    """The rows of `Results.groups` for pretrained models and means over models, with titles."""
    arms = enumerate(results.grid.arms)
    pre = [(k, arm.model, "pretrained") for k, arm in arms if arm.method == PRE]
    titles = pandas.DataFrame(pre, columns=["arm", "model", "method"])
    titles = pandas.concat([titles, results.shown[[*titles]]])
    return titles.merge(results.groups.query("downstream == ''"), on="arm")
