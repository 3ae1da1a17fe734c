"""The leak: what it is worth to have seen a photo in another set."""

from __future__ import annotations

from engine.measures.tables import with_ends
from engine.report import charts, headline
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model

NUMBERS = ["seen_pts", "unseen_pts", "leak_pts"]


def section(results: Results) -> Section | None:
    """The leak of each method, by set fine-tuned on and set evaluated on; None where no photos of
    sets were held out alike."""
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
        "Some sets show the same photos. A photo is held out of all of them or of none, so a set "
        "can be judged on photos that a model saw in the set it was fine-tuned on, and on photos "
        "that it did not see, of classes that it was trained on. The leak is the change in "
        "accuracy on the former less that on the latter, in points. RI and mRI count photos that "
        f"were not seen. Intervals are about {results.population}.",
        figures=by_model(
            results,
            "leak",
            f"The leak{results.in_one_training}, in points, with its 95% interval: a mean over "
            "sets with the same photos",
            of_methods[["model", "method", *with_ends("leak_pts")]],
            ("leak_pts", "method"),
            lambda rows: charts.bars(rows, "leak_pts"),
        ),
        tables=[
            Table(
                "leak", "Change in accuracy on seen and unseen photos, and the leak.", of_methods
            ),
            Table("leak-by-column", "The same, by set fine-tuned on.", of_columns),
            Table("leak-by-set", "The same, by set fine-tuned on and set of its photos.", of_sets),
        ],
        is_open=True,
    )
