"""How far accuracy falls below the line between two models that are interpolated."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pandas

from engine.measures.interpolation import barrier
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.text import rounded

ON_OWN, ON_OTHERS = "barrier_on_downstream_set_pts", "barrier_on_other_sets_pts"


def section(results: Results) -> Section | None:
    """None where no weights are interpolated from one end to the other."""
    rows = list(_rows(results))
    if not rows:
        return None
    statements = []
    for name, words in ((ON_OWN, "the set fine-tuned on"), (ON_OTHERS, "the other sets")):
        judged = [(row[name], row["downstream"]) for row in rows if name in row]
        if judged:
            worst, where = max(judged)
            mean = fmean(value for value, _ in judged)
            statements.append(
                f"On {words} the barrier is {rounded(mean)} points in the mean, and "
                f"{rounded(worst)} at most, after fine-tuning on {where}."
            )
    return Section(
        "barrier",
        "Between the pre-trained model and the fine-tuned one",
        "The barrier is the largest distance, over the alphas that were evaluated, from accuracy "
        "up to the straight line between both ends (Entezari et al. 2022, in points of accuracy). "
        "0: nowhere below the line, so that averaged weights lose nothing. It is the largest of "
        "several differences, so chance on few images raises it.",
        statements=statements,
        tables=[
            Table("barrier", "By set fine-tuned on: the barrier in points.", pandas.DataFrame(rows))
        ],
    )


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    """The barriers, a row a curve of alphas and set fine-tuned on."""
    grid, by = results.grid, ["arm", "downstream"]
    own = grid.cells[grid.cells["downstream"] == grid.cells["evaluated_on"]]
    on_own = own.set_index(by)["accuracy"].to_dict()
    on_others = grid.elsewhere.groupby(by)["accuracy"].mean().to_dict()
    arms = results.arms.dropna(subset="alpha")
    for (model, key, _, _), curve in arms.groupby(
        ["model", "key", "variant", "setting"], sort=False
    ):
        alphas = curve["alpha"].tolist()
        for name in results.downstreams(str(model)) if {0.0, 1.0} <= set(alphas) else ():
            title = results.record.methods.get(str(key), str(key))
            row = {"model": model, "method": title, "downstream": name, "alphas": len(alphas)}
            places = [(arm, name) for arm in curve["arm"]]
            for column, accuracy in ((ON_OWN, on_own), (ON_OTHERS, on_others)):
                if all(place in accuracy for place in places):
                    row[column] = barrier(alphas, [accuracy[place] for place in places])
            yield row
