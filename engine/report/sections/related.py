"""RI without related sets: those that share photos with the set fine-tuned on, or its maker."""

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
    """Disjoint mRI beside mRI, and which sets are related; None where none are."""
    related = results.grid.related
    of_ri = related["set"].isin(results.grid.sets)
    related = related[of_ri & related["related_to"].isin(results.grid.downstreams)]
    if related.empty:
        return None
    caption = "Related sets, in order: the percentage of a set's photos that are also in the other"
    pairs = Table("related-sets", f"{caption}; and who made both.", related.reset_index(drop=True))
    rows = results.disjoint
    if rows.empty:
        return Section(
            "related-sets",
            "Every set is related to every set fine-tuned on, so there is no disjoint RI",
            RELATED,
            tables=[pairs],
        )
    columns = [end for name in NUMBERS for end in with_ends(name)]
    data = rows[["model", "method", "variant", *columns]]
    over = listed([str(count) for count in sorted(set(rows["columns"]))])
    return Section(
        "related-sets",
        without_related(results) or "Related sets move no mRI by more than its interval",
        f"{RELATED} Disjoint RI is RI without the sets that are related to the one fine-tuned on; "
        f"disjoint mRI is its mean over {over} of {counted('set', len(results.grid.downstreams))} "
        f"fine-tuned on. Intervals of the difference are about {results.population}.",
        figures=by_model(
            results,
            "related-sets",
            f"Disjoint mRI less mRI{results.in_one_training}, in points, with the paired 95% "
            "interval",
            data[["model", "method", *with_ends("difference_pts")]],
            ("difference_pts", "method"),
            lambda rows: charts.bars(rows, "difference_pts"),
        ),
        tables=[
            Table(
                "disjoint-mri",
                "mRI, disjoint mRI, and what that is more"
                f"{results.in_one_training}, in points, with 95% intervals.",
                data,
                best=NUMBERS[:2],
            ),
            _by_set(results),
            pairs,
        ],
    )


def _by_set(results: Results) -> Table:
    """Disjoint RI, a row a method, a column a set fine-tuned on."""
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
        "Disjoint RI in points: fine-tuned on the set that heads the column.",
        wide,
        [name for name in map(str, wide) if name.endswith("_pts")],
    )
