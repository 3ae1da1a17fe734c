"""A figure for each pre-trained model of a report."""

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
    """Figures of the rows of each `model`, drawn without that column. In words a figure is its
    caption and the least and the greatest number of a `column`, which comes before the columns that
    name a row."""
    figures = []
    for model, rows in groups(data, "model"):
        shown, title = rows.drop(columns="model"), caption
        if len(results.models) > 1:
            title = f"{model}: {caption}"
        words = f"{title}: from {between(shown, *column)}."
        figures.append(Figure(slug(name, model), f"{title}.", words, shown, draw(shown)))
    return figures
