"""One figure per pretrained model of a report."""

from __future__ import annotations

from collections.abc import Callable

import pandas

from engine.measures.tables import groups
from engine.report.charts import Spec
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure
from engine.report.text import slug


def by_model(
    results: Results,
    name: str,
    caption: str,
    data: pandas.DataFrame,
    column: tuple[str, ...],
    draw: Callable[[pandas.DataFrame], Spec],
) -> list[Figure]:
    """One figure per `model`, drawn without that column. Its alternative text is the caption with
    the minimum and maximum of `column`: a number's column, followed by columns that name a row."""
    figures = []
    for model, rows in groups(data, "model"):
        shown, title = rows.drop(columns="model"), caption
        if len(results.models) > 1:
            title = f"{model}: {caption}"
        words = f"{title}: from {between(shown, *column)}."
        figures.append(Figure(slug(name, model), f"{title}.", words, shown, draw(shown)))
    return figures
