"""The leak: the gain from having seen a photo in another dataset."""

from __future__ import annotations

from engine.measures.tables import with_ends
from engine.report import charts, headline
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model

NUMBERS = ["seen_pts", "unseen_pts", "leak_pts"]


def section(results: Results) -> Section | None:
    """The leak of each method, by downstream dataset and dataset evaluated on; None if photos were
    not held out by source."""
    if not len(results.leak):
        return None
    titles = results.shown[["arm", "model", "method", "variant"]]
    columns = [end for name in NUMBERS for end in with_ends(name)]
    data = titles.merge(results.leak, on="arm").drop(columns="arm")
    of_methods = data.query("downstream == ''")[["model", "method", "variant", *columns]]
    of_columns = data.query("downstream != '' and evaluated_on == ''").drop(columns="evaluated_on")
    of_sets = data.query("evaluated_on != ''")
    return Section(
        "leak",
        headline.leak(results),
        "Some datasets show the same photos. A photo is held out of all of them or of none, so "
        "each dataset has photos that a model saw in the downstream dataset, and held-out photos "
        "of the same classes. The leak is the change in accuracy on seen photos minus the change "
        "on held-out photos, in points. RI and mRI use held-out photos. Intervals cover "
        f"{results.population}.",
        figures=by_model(
            results,
            "leak",
            f"The leak{results.in_one_training}, in points, with 95% intervals: mean over "
            "datasets with the same photos",
            of_methods[["model", "method", *with_ends("leak_pts")]],
            ("leak_pts", "method"),
            lambda rows: charts.bars(rows, "leak_pts"),
        ),
        tables=[
            Table(
                "leak", "Change in accuracy on seen and held-out photos, and the leak.", of_methods
            ),
            Table("leak-by-column", "The same, by downstream dataset.", of_columns),
            Table(
                "leak-by-set",
                "The same, by downstream dataset and dataset with its photos.",
                of_sets,
            ),
        ],
        is_open=True,
    )
