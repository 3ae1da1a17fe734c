"""How far accuracy falls below the line between two models that are interpolated."""

from __future__ import annotations

from typing import Any

import pandas

from engine.measures.interpolation import barrier
from engine.measures.tables import extremes
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.text import listed, rounded

NAMES = {
    "barrier_on_downstream_set_pct": "the set fine-tuned on",
    "barrier_on_other_sets_pct": "the other sets",
}


def section(results: Results) -> Section | None:
    """None where no weights are interpolated from one end to the other."""
    curves = results.arms[results.arms["alpha"].notna()]
    rows = [
        row
        for _, curve in curves.groupby(["model", "key", "variant", "setting"], sort=False)
        if {0.0, 1.0} <= set(curve["alpha"])
        for row in _rows(results, curve)
    ]
    if not rows:
        return None
    data, statements = pandas.DataFrame(rows), []
    heading = "Mixed weights lose nothing: accuracy is nowhere below the line between both ends"
    most: list[str] = []
    for name, words in NAMES.items():
        if name in data:
            _, worst = extremes(data, name)
            if worst[name] > 0:
                most.append(f"{rounded(worst[name])} points on {words}")
            statements.append(
                f"On {words} the barrier is {rounded(data[name].mean())} points in the mean, and "
                f"{rounded(worst[name])} at most, after fine-tuning on {worst['downstream']}."
            )
    if most:
        heading = f"Mixed weights fall below the line between both ends by at most {listed(most)}"
    return Section(
        "barrier",
        heading,
        "The barrier is the largest distance, over the alphas that were evaluated, from accuracy "
        "up to the straight line between both ends (Entezari et al. 2022, in points of accuracy). "
        "It is the largest of several differences, so chance on few images raises it.",
        statements,
        tables=[Table("barrier", "By set fine-tuned on: the barrier in points.", data)],
    )


def _rows(results: Results, curve: pandas.DataFrame) -> list[dict[str, Any]]:
    """The barriers of a curve's points, a row a set fine-tuned on."""
    model, method = curve["model"].iloc[0], curve["method"].iloc[0]
    alphas = dict(zip(curve["arm"], curve["alpha"], strict=True))
    cells = results.grid.cells[results.grid.cells["arm"].isin(curve["arm"])]
    elsewhere = cells[cells.index.isin(results.grid.elsewhere.index)]
    rows = []
    for name in results.downstreams(model):
        row: dict[str, Any] = {"model": model, "method": method, "downstream": name}
        row["alphas"] = len(alphas)
        on_downstream = cells[(cells["downstream"] == name) & (cells["evaluated_on"] == name)]
        others = elsewhere[elsewhere["downstream"] == name]
        for column, of in zip(NAMES, (on_downstream, others), strict=True):
            accuracy = of.groupby("arm")["accuracy"].mean()
            if len(accuracy) == len(alphas):
                row[column] = barrier([alphas[arm] for arm in accuracy.index], [*accuracy])
        rows.append(row)
    return rows
