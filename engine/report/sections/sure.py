"""How sure: each method against the best, and what became of single answers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from engine.measures import behaviour, power
from engine.measures.tables import with_ends
from engine.report import charts, tuning
from engine.report.headline import told_apart
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, rounded

TEST = {
    False: "a normal test of the difference with the deviation that a paired bootstrap gives it",
    True: "Student's test of the difference, with its deviation over images, by a paired "
    "bootstrap, and that over seeds, pooled over the rows that train",
}
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
        f"{_separated(results, models)}Differences are paired: both methods see the same draw of "
        "images. The population is "
        f"{results.population_of_mri}. p: {TEST[results.covers_training]}, corrected for "
        f"{counted('comparison', results.family)} (Holm); intervals are not corrected. Equal "
        "accuracy can hide that many answers changed: the table has how many, on the other sets.",
        figures=by_model(
            results,
            "how-sure",
            f"mRI less that of the best method, with the paired 95% interval{results.one_training}",
            data[["model", "method", *DIFFERENCE]].dropna(subset=DIFFERENCE[0]),
            (DIFFERENCE[0], "method"),
            lambda rows: charts.bars(rows, DIFFERENCE[0]),
        ),
        tables=[
            Table(
                "how-sure",
                "Each method's mRI less that of the best, with its 95% interval"
                f"{results.one_training}. Means over the other sets: {behaviour.legend()}. Of "
                "these, numbers of a whole set have no interval. Effective robustness: accuracy "
                "above the trend line of models that nothing made robust, where there is one.",
                data,
            )
        ],
    )


def _separated(results: Results, models: Sequence[str]) -> str:
    """What it would take to separate two rows by a point, where something shows the error over
    seeds."""
    sentences = []
    for model in models:
        errors = power.errors(results.grid, results.ranked(model)["arm"].tolist())
        if errors is not None:
            least = errors.difference(len(results.grid.seeds))
            needed = errors.needed(1)
            seeds = f"about {counted('seed', needed)}" if needed else "more than 100 seeds"
            sentences.append(
                f"Two rows{results.of(model)} that differ by {rounded(least)} points are found "
                f"different in 8 of 10 such campaigns; 1 point takes {seeds} of these images "
                "(`rib power`). "
            )
    return "".join(sentences)


def _against_best(results: Results, model: str) -> pandas.DataFrame:
    ranked = results.ranked(model)[["arm", "model", "method", "variant"]]
    tests = results.against(ranked["arm"].iloc[0]).drop(columns=["evaluated_on", "p"])
    means = results.grid.by_arm.merge(ranked["arm"], on="arm").dropna(axis=1, how="all")
    elsewhere = ["accuracy_pct", "change_pts", "disjoint_change_pts"]  # of other sections
    means = means.drop(columns=["before_pct"])
    means = means.drop(columns=[end for k in elsewhere for end in with_ends(k)], errors="ignore")
    table = ranked.merge(tests.reset_index(), how="left", on="arm").merge(means, on="arm")
    return table.drop(columns="arm").rename(columns={"p_corrected": "corrected_p"})
