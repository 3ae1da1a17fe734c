"""Differences of means over the same draws of images, with one bar per method."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from engine.measures import comparisons
from engine.measures.tables import groups, with_ends
from engine.report import charts, headline, tuning
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.text import counted, listed, rounded

ARM = ["model", "method", "variant"]
DISJOINT = ["mRI_pts", "disjoint_mRI_pts", "difference_pts"]


def difference_section(
    results: Results,
    key: str,
    heading: str,
    text: str,
    difference: str,
    caption: str,
    tables: Sequence[Table],
    *,
    is_open: bool = False,
) -> Section:
    """A section with a bar for each method's difference, from the first table. text: ends with the
    intervals' population. difference: its column; caption: what it is, without its interval."""
    data = tables[0].data[["model", "method", *with_ends(difference)]].dropna(subset=difference)
    caption = f"{caption}, in points, with 95% intervals"
    figures = charts.by_model(results, key, caption, data, (difference, "method"))
    return Section(key, heading, text, figures, tables, is_open=is_open)


def related(results: Results) -> Section | None:
    """mRI and disjoint mRI, and which datasets are related; None if none are."""
    related = results.grid.related
    of_ri = related["set"].isin(results.grid.sets)
    related = related[of_ri & related["related_to"].isin(results.grid.downstreams)]
    if related.empty:
        return None
    pairs = Table(
        "related-sets",
        "Related datasets: percentage of a dataset's photos that the other dataset also has, and "
        "the maker of both.",
        related.reset_index(drop=True),
    )
    rows = results.disjoint
    if rows.empty:
        heading = "Every dataset is related to every downstream dataset, so there is no disjoint RI"
        return Section("related-sets", heading, headline.RELATED, tables=[pairs])
    over = listed([str(count) for count in sorted(set(rows["columns"]))])
    return difference_section(
        results,
        "related-sets",
        headline.without_related(results)
        or "Related datasets change no mRI by more than its 95% interval",
        f"{headline.RELATED} Disjoint RI is RI without datasets related to the downstream dataset; "
        f"disjoint mRI is its mean over {over} of "
        f"{counted('downstream dataset', len(results.grid.downstreams))}. Intervals generalise to "
        f"{results.population}.",
        "difference_pts",
        f"Disjoint mRI minus mRI{results.in_one_training}",
        [
            Table(
                "disjoint-mri",
                "mRI, disjoint mRI and their difference"
                f"{results.in_one_training}, in points, with 95% intervals.",
                rows[[*ARM, *(end for name in DISJOINT for end in with_ends(name))]],
                best=DISJOINT[:2],
            ),
            _disjoint_ri(results),
            pairs,
        ],
    )


def _disjoint_ri(results: Results) -> Table:
    """Disjoint RI, with one row per method and one column per downstream dataset."""
    titles = results.shown.set_index("arm")
    numbers = results.grid.numbers.query("evaluated_on == '' and downstream != ''")
    numbers = numbers[numbers["arm"].isin(titles.index)].dropna(subset="disjoint_change_pts")
    numbers = numbers.join(titles[ARM], on="arm")
    parts = [
        rows.pivot_table("disjoint_change_pts", ARM, "downstream", sort=False)[
            [name for name in results.downstreams(model) if name in set(rows["downstream"])]
        ]
        for model, rows in groups(numbers, "model")
    ]
    wide = pandas.concat(parts).add_suffix("_pts")
    return Table(
        "disjoint-ri",
        "Disjoint RI in points, by downstream dataset.",
        wide.rename_axis(columns=None).reset_index(),
        list(map(str, wide)),
    )


def best(results: Results) -> Section | None:
    """Each method compared with the best, and changes of single predictions."""
    models = [model for model in results.models if len(results.ranked(model)) > 1]
    if not models:
        return None
    test = "paired t test over source images"
    if results.covers_training:
        test += " and over seeds (pooled over the trained methods)"
    reference = "highest mRI of its setting" if tuning.is_varied(results) else "best method"
    return difference_section(
        results,
        "differences",
        f"Differences from the {reference}{results.one_training}",
        f"{_minimum_detectable(results, models)}Both methods of a difference use the same draws of "
        f"images. Intervals generalise to {results.population_of_mri}. p is from a {test}. p is "
        f"adjusted for {counted('comparison', results.family)} (Holm); intervals are not. Equal "
        "accuracy can hide changed predictions; the table shows how many changed.",
        "difference_pts",
        f"mRI minus the best method's{results.one_training}",
        [
            Table(
                "differences",
                "Each method's mRI minus the best method's, with 95% intervals"
                f"{results.one_training}. Properties of the predictions are means over the other "
                "datasets (How to read this). Effective robustness: accuracy above the trend line, "
                "if there is one.",
                pandas.concat([_against_best(results, of) for of in models], ignore_index=True),
            )
        ],
    )


def _minimum_detectable(results: Results, models: Sequence[str]) -> str:
    """The minimum detectable difference, and the seeds that detect one point; empty if the error
    over seeds is unknown."""
    sentences = []
    for model in models:
        errors = comparisons.errors(results.grid, results.ranked(model)["arm"].tolist())
        if errors is not None:
            least = errors.difference(len(results.grid.seeds))
            needed = errors.needed(1)
            seeds = f"about {counted('seed', needed)}" if needed else "more than 100 seeds"
            sentences.append(
                f"The minimum detectable difference{results.of(model)} is {rounded(least)} points "
                f"(power 80%); detecting 1 point takes {seeds} with these images. "
            )
    return "".join(sentences)


def _against_best(results: Results, model: str) -> pandas.DataFrame:
    ranked = results.ranked(model)[["arm", *ARM]]
    tests = results.against(ranked["arm"].iloc[0]).drop(columns=["evaluated_on", "p"])
    means = results.grid.by_arm.merge(ranked["arm"], on="arm").dropna(axis=1, how="all")
    elsewhere = ["before_pct", "accuracy_pct", "change_pts", "disjoint_change_pts"]  # in sections
    means = means.drop(columns=[end for k in elsewhere for end in with_ends(k)], errors="ignore")
    table = ranked.merge(tests.reset_index(), how="left", on="arm").merge(means, on="arm")
    return table.drop(columns="arm")
