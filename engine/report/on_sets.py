"""Terminal tables of accuracies on users' datasets: for checkpoints, and for a campaign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter

import pandas

from engine.evaluation.accuracies import OnSet
from engine.report import console
from engine.report.results import title
from engine.report.text import ascii_signed, rounded, set_head

SET = attrgetter("evaluated_on")


def of_files(rows: Sequence[OnSet]) -> str:
    """One line per dataset and model: accuracy in percent, with half the width of its interval."""
    name = "model" if rows[0].alpha is None else "alpha"
    lines = [list(map(_line, of_set)) for _, of_set in groupby(rows, SET)]
    return console.text("", [name, "set", "images", "classes", "accuracy"], *lines)


def _line(row: OnSet) -> list[str]:
    accuracy, name = rounded(row.accuracy, 2), row.model if row.alpha is None else f"{row.alpha:g}"
    if row.low is not None and row.high is not None:
        accuracy += f" ±{rounded((row.high - row.low) / 2, 2)}"
    return [name, row.evaluated_on, f"{row.n:,}", f"{row.classes:,}", accuracy]


def of_campaign(
    rows: Sequence[OnSet], downstreams: Sequence[str], titles: Mapping[str, str]
) -> str:
    """One table per dataset: accuracy in percent and its change in points, with the headline rows
    of the campaign and one column per downstream dataset. titles: of methods, by key."""
    tables = []
    for _, (before, *trained) in groupby(rows, SET):
        cells = {(row.arm, row.downstream): row.accuracy for row in trained if row.headline}
        after = pandas.Series(cells).unstack(sort=False)[[*downstreams]]
        after["mean"] = after.mean(axis=1)
        table = console.text(
            f"{before.model} on {before.evaluated_on}: {before.n:,} images\n"
            f"top-1 accuracy in percent among {before.classes:,} classes, after fine-tuning on the "
            "dataset that heads the column; below, the change from the pretrained model in points.",
            ["", *map(set_head, downstreams), "mean"],
            [["pretrained", *[""] * len(downstreams), rounded(before.accuracy)]],
            [[title(arm, titles), *map(rounded, of)] for arm, *of in after.itertuples()],
            [
                [title(arm, titles), *map(ascii_signed, of)]
                for arm, *of in (after - before.accuracy).itertuples()
            ],
        )
        tables.append(table)
    return "\n\n".join(tables)
