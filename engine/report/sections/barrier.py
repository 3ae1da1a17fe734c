"""How far accuracy falls below the line between two models that are interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas

from engine.measures.interpolation import barrier
from engine.measures.standings import Line, rounded
from engine.report.section import Section, Table
from engine.report.tables import Results

FORMATS = {"barrier_on_downstream_set": "plain1", "barrier_on_other_sets": "plain1"}


def section(results: Results) -> Section | None:
    """None where no weights are interpolated from one end to the other."""
    rows = [
        {"model": model.model, "method": curve[0].title, **row}
        for model in results.models
        for curve in model.curves
        if {0.0, 1.0} <= {line.arm.alpha for line in curve}
        for row in _rows(curve, model.downstreams, model.sets)
    ]
    if not rows:
        return None
    statements = []
    for name, words in (
        ("barrier_on_downstream_set", "the set fine-tuned on"),
        ("barrier_on_other_sets", "the other sets"),
    ):
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
            Table(
                "barrier",
                "By set fine-tuned on: the barrier in points.",
                pandas.DataFrame(rows),
                FORMATS,
            ),
        ],
    )


def _rows(
    curve: Sequence[Line], downstreams: Sequence[str], sets: Sequence[str]
) -> list[dict[str, Any]]:
    """The barriers of a curve [points], a row a set fine-tuned on."""
    alphas = [line.arm.alpha or 0.0 for line in curve]
    rows = []
    for name in downstreams:
        others = [each for each in sets if each != name]
        after = [line.after[name] for line in curve]
        elsewhere = [fmean(accuracy[each] for each in others) for accuracy in after]
        row: dict[str, Any] = {"downstream": name, "alphas": len(alphas)}
        if all(name in accuracy for accuracy in after):
            row["barrier_on_downstream_set"] = barrier(alphas, [each[name] for each in after])
        rows.append(row | {"barrier_on_other_sets": barrier(alphas, elsewhere)})
    return rows
