"""How sure: each method against the best, and what became of single answers."""

from __future__ import annotations

import pandas

from engine.measures import behaviour, metrics
from engine.measures.tables import extremes, groups
from engine.report import charts
from engine.report.headline import told_apart
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted, slug


def section(results: Results) -> Section | None:
    models = [model for model in results.models if len(results.ranked(model)) > 1]
    if not models:
        return None
    data = pandas.concat([_against_best(results, model) for model in models], ignore_index=True)
    return Section(
        "how-sure",
        "; ".join(f"{told_apart(results, model)}{results.of(model)}" for model in models),
        "Differences are paired: both methods see the same draw of images. The population is "
        f"{results.population}. p is of the paired bootstrap, corrected for "
        f"{counted('comparison', results.family)} (Holm).",
        [_answers(results, *of) for of in groups(data, "model")],
        [_figure(results, *of) for of in groups(data, "model")],
        [
            Table(
                "how-sure",
                "Each method's mRI less that of the best, with its 95% interval. On the other "
                "sets, means in percent of images: the same answer before and after, right both "
                "times, lost (right before only) and gained (right after only); expected "
                "calibration error in points, debiased, and where they are stored that after "
                "temperature scaling and the class-wise one; mean accuracy over classes and that "
                "on the worst class; these five have no interval. Accuracy above the trend line of "
                "models that nothing made robust, where there is one.",
                data,
            )
        ],
    )


def measures(
    results: Results, cells: pandas.DataFrame, by: list[str], *, ends: bool = False
) -> pandas.DataFrame:
    """A column a measure, a mean over each group of the grid's cells; ends: with those of its
    interval, where it has one."""
    means = results.grid.mean(cells, by)
    table = means.keys
    for name in metrics.measures():
        column = f"{name}_{'pts' if name == metrics.ROBUSTNESS else 'pct'}"
        numbers = means.keys.assign(**{column: means.values(name)})
        if ends:
            numbers = means.table(column, name, clip=name in behaviour.SHARES)
        table = table.merge(numbers, on=by, how="left")
    return table.dropna(axis=1, how="all")


def _against_best(results: Results, model: str) -> pandas.DataFrame:
    ranked = results.ranked(model)[["arm", "model", "method", "variant"]]
    tests = results.against(ranked["arm"].iloc[0]).drop(columns=["evaluated_on", "p"])
    means = measures(results, results.grid.elsewhere, ["arm"], ends=True)
    table = ranked.merge(tests.reset_index(), how="left", on="arm").merge(means, on="arm")
    return table.drop(columns="arm").rename(columns={"p_corrected": "corrected_p"})


def _figure(results: Results, model: str, data: pandas.DataFrame) -> Figure:
    best, rows = data["method"].iloc[0], data.dropna(subset="difference_pts")
    rows = rows[["method", "difference_pts", "difference_low", "difference_high"]]
    apart = rows.loc[rows["difference_high"] < 0, "method"]
    return Figure(
        slug("how-sure", model),
        f"mRI less {best}'s{results.of(model)}, with the paired 95% interval, not corrected for "
        "the number of comparisons.",
        f"Paired difference in mRI to {best}{results.of(model)}; intervals wholly below 0: "
        f"{', '.join(apart) or 'none'}.",
        rows,
        charts.bars(rows, "difference_pts"),
    )


def _answers(results: Results, model: str, rows: pandas.DataFrame) -> str:
    """How many answers change on the other sets, by the method that changes most and least."""
    rows = rows.dropna(axis=1, how="all")
    if "same_top1_pct" not in rows:
        return "The models saw other images than the pre-trained one, so no answers are compared."
    texts = [
        f"{row['method']} changes {100 - row['same_top1_pct']:.1f}% of the answers, loses "
        f"{row['lost_pct']:.1f} points of right ones and gains {row['gained_pct']:.1f}"
        for row in extremes(rows, "same_top1_pct")[: len(rows)]
    ]
    hidden = f"Equal accuracy can hide that many answers changed{results.of(model)}"
    return f"{hidden}: {'; '.join(texts)}."
