"""Each method compared with the best, and changes of single predictions."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from engine.measures import power, scores
from engine.measures.tables import with_ends
from engine.report import charts, tuning
from engine.report.headline import told_apart
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, rounded

TEST = {
    False: "normal test, with the standard deviation of a paired bootstrap",
    True: "t test, with the standard deviations over images (paired bootstrap) and over seeds "
    "(pooled over the rows that train)",
}
DIFFERENCE = ["difference_pts", "difference_low", "difference_high"]


def section(results: Results) -> Section | None:
    models = [model for model in results.models if len(results.ranked(model)) > 1]
    if not models:
        return None
    data = pandas.concat([_against_best(results, model) for model in models], ignore_index=True)
    heading = "; ".join(f"{told_apart(results, model)}{results.of(model)}" for model in models)
    if tuning.is_varied(results):
        heading = "Comparison with the row of the highest mRI, within a setting"
    return Section(
        "how-sure",
        heading,
        f"{_separated(results, models)}Differences are paired: both methods use the same draws of "
        f"images. Population: {results.population_of_mri}. p is from a "
        f"{TEST[results.covers_training]}. It is corrected for "
        f"{counted('comparison', results.family)} (Holm); intervals are not. Equal accuracy can "
        "hide changed predictions; the table shows how many changed.",
        figures=by_model(
            results,
            "how-sure",
            f"mRI minus the best method's, with paired 95% intervals{results.one_training}",
            data[["model", "method", *DIFFERENCE]].dropna(subset=DIFFERENCE[0]),
            (DIFFERENCE[0], "method"),
            lambda rows: charts.bars(rows, DIFFERENCE[0]),
        ),
        tables=[
            Table(
                "how-sure",
                "Each method's mRI minus the best method's, with 95% intervals"
                f"{results.one_training}. Means over the other datasets: {scores.legend()}. "
                "Effective robustness: accuracy above the trend line, if there is one.",
                data,
            )
        ],
    )


def _separated(results: Results, models: Sequence[str]) -> str:
    """The smallest detectable difference, and the seeds that detect one point; empty if the error
    over seeds is unknown."""
    sentences = []
    for model in models:
        errors = power.errors(results.grid, results.ranked(model)["arm"].tolist())
        if errors is not None:
            least = errors.difference(len(results.grid.seeds))
            needed = errors.needed(1)
            seeds = f"about {counted('seed', needed)}" if needed else "more than 100 seeds"
            sentences.append(
                f"A campaign like this detects a difference{results.of(model)} of {rounded(least)} "
                f"points with a power of 80%; detecting 1 point takes {seeds} with these images "
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
