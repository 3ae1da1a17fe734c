"""RI without related datasets, which share photos or a maker with the downstream dataset."""

from __future__ import annotations

import pandas

from engine.measures.tables import groups, with_ends
from engine.report import charts
from engine.report.headline import RELATED, without_related
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, listed

NUMBERS = ["mRI_pts", "disjoint_mRI_pts", "difference_pts"]


def section(results: Results) -> Section | None:
    """mRI and disjoint mRI, and which datasets are related; None if none are."""
    related = results.grid.related
    of_ri = related["set"].isin(results.grid.sets)
    related = related[of_ri & related["related_to"].isin(results.grid.downstreams)]
    if related.empty:
        return None
    caption = "Related datasets: percentage of a dataset's photos that the other one also has"
    pairs = Table(
        "related-sets", f"{caption}, and the maker of both.", related.reset_index(drop=True)
    )
    rows = results.disjoint
    if rows.empty:
        return Section(
            "related-sets",
            "Every dataset is related to every downstream dataset, so there is no disjoint RI",
            RELATED,
            tables=[pairs],
        )
    columns = [end for name in NUMBERS for end in with_ends(name)]
    data = rows[["model", "method", "variant", *columns]]
    over = listed([str(count) for count in sorted(set(rows["columns"]))])
    return Section(
        "related-sets",
        without_related(results) or "Related datasets change no mRI by more than its 95% interval",
        f"{RELATED} Disjoint RI is RI without datasets related to the downstream dataset; disjoint "
        f"mRI is its mean over {over} of "
        f"{counted('downstream dataset', len(results.grid.downstreams))}. Population of "
        f"the intervals: {results.population}.",
        figures=by_model(
            results,
            "related-sets",
            f"Disjoint mRI minus mRI{results.in_one_training}, in points, with paired 95% "
            "intervals",
            data[["model", "method", *with_ends("difference_pts")]],
            ("difference_pts", "method"),
            lambda rows: charts.bars(rows, "difference_pts"),
        ),
        tables=[
            Table(
                "disjoint-mri",
                "mRI, disjoint mRI and their difference"
                f"{results.in_one_training}, in points, with 95% intervals.",
                data,
                best=NUMBERS[:2],
            ),
            _by_set(results),
            pairs,
        ],
    )


def _by_set(results: Results) -> Table:
    """Disjoint RI, with one row per method and one column per downstream dataset."""
    titles = results.shown.set_index("arm")
    numbers = results.grid.numbers.query("evaluated_on == '' and downstream != ''")
    numbers = numbers[numbers["arm"].isin(titles.index)].dropna(subset="disjoint_change_pts")
    numbers = numbers.join(titles[["model", "method", "variant"]], on="arm")
    parts = [
        rows.pivot_table(
            "disjoint_change_pts", ["model", "method", "variant"], "downstream", sort=False
        )[[name for name in results.downstreams(model) if name in set(rows["downstream"])]]
        for model, rows in groups(numbers, "model")
    ]
    wide = pandas.concat(parts).add_suffix("_pts").rename_axis(columns=None).reset_index()
    return Table(
        "disjoint-ri",
        "Disjoint RI in points, by downstream dataset.",
        wide,
        [name for name in map(str, wide) if name.endswith("_pts")],
    )
