"""The terminal table of a campaign's rows on one set that is not the campaign's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from engine.grid.own_sets import OnUsersSet
from engine.measures.rows import PRE, Arm
from engine.report import console, table


def text(rows: Sequence[OnUsersSet], downstreams: Sequence[str], methods: Mapping[str, str]) -> str:
    """Accuracy of every row in percent, and below its change in points; a column a set fine-tuned
    on, in the order of `downstreams`, and their mean.

    `methods`: keys to titles, in row order. `rows` are of one set.
    """
    before = next(row for row in rows if row.method == PRE)
    trained = [row for row in rows if row.method != PRE]
    order = list(dict.fromkeys([*methods, *(row.method for row in trained)]))
    arms: dict[Arm, dict[str, float]] = {}
    for row in sorted(trained, key=lambda row: (order.index(row.method), row.alpha or 0)):
        arms.setdefault(row.arm, {})[row.downstream] = row.accuracy

    accuracy, change = [], []
    for arm, by_set in arms.items():
        title = methods.get(arm.method, arm.method)
        title += "" if arm.alpha is None else f" alpha={arm.alpha:g}"
        title += arm.setting and f" {arm.setting}"
        after = [by_set[name] for name in downstreams]
        after.append(fmean(after))
        accuracy.append([title, *(f"{value:.1f}" for value in after)])
        change.append([title, *(table.number(value - before.accuracy) for value in after)])
    classes = "the set's" if before.mask == "present" else "all the head's"
    return console.text(
        f"{before.model} on {before.evaluated_on}: {before.n:,} images\n"
        f"percent top-1 among {classes} {before.classes:,} classes after fine-tuning on the set "
        "that heads the column; below, the change from the pre-trained model in points.",
        ["", *map(table.set_head, downstreams), "mean"],
        [["pre-trained", *[""] * len(downstreams), f"{before.accuracy:.1f}"]],
        accuracy,
        change,
    )
