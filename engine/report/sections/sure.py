"""How sure: each method against the best, and what became of single answers."""

from __future__ import annotations

import pandas

from engine.measures import behaviour
from engine.measures.tables import with_ends
from engine.report import charts, tuning
from engine.report.headline import told_apart
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted

DIFFERENCE = ["difference_pts", "difference_low", "difference_high"]


def section(results: Results) -> Section | None:
    models = [model for model in results.models if len(results.ranked(model)) > 1]
    if not models:
        return None
    data = pandas.concat([_against_best(results, model) for model in models], ignore_index=True)
    heading = "; ".join(f"{told_apart(results, model)}{results.of(model)}" for model in models)
    if tuning.is_varied(results):
        heading = "Methods are compared within a setting, with the row of the highest mRI"
    return Section(
        "how-sure",
        heading,
        "Differences are paired: both methods see the same draw of images. The population is "
        f"{results.population}. p is of the paired bootstrap, corrected for "
        f"{counted('comparison', results.family)} (Holm); intervals are not corrected. Equal "
        "accuracy can hide that many answers changed: the table has how many, on the other sets.",
        figures=by_model(
            results,
            "how-sure",
            "mRI less that of the best method, with the paired 95% interval",
            data[["model", "method", *DIFFERENCE]].dropna(subset=DIFFERENCE[0]),
            (DIFFERENCE[0], "method"),
            lambda rows: charts.bars(rows, DIFFERENCE[0]),
        ),
        tables=[
            Table(
                "how-sure",
                "Each method's mRI less that of the best, with its 95% interval. Means over the "
                f"other sets: {behaviour.legend()}. Of these, numbers of a whole set have no "
                "interval. Effective robustness: accuracy above the trend line of models that "
                "nothing made robust, where there is one.",
                data,
            )
        ],
    )


def _against_best(results: Results, model: str) -> pandas.DataFrame:
    ranked = results.ranked(model)[["arm", "model", "method", "variant"]]
    tests = results.against(ranked["arm"].iloc[0]).drop(columns=["evaluated_on", "p"])
    means = results.grid.by_arm.merge(ranked["arm"], on="arm").dropna(axis=1, how="all")
    elsewhere = ["accuracy_pct", "change_pts", "disjoint_change_pts"]  # of other sections
    means = means.drop(columns=["before_pct"])
    means = means.drop(columns=[end for k in elsewhere for end in with_ends(k)], errors="ignore")
    table = ranked.merge(tests.reset_index(), how="left", on="arm").merge(means, on="arm")
    return table.drop(columns="arm").rename(columns={"p_corrected": "corrected_p"})
