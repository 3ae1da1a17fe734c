"""Every number of the report in one table, to filter and to sort."""

from __future__ import annotations

import pandas

from engine.measures.metrics import Means
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.sure import measures

OTHERS, EACH = "others", "all"
COLUMNS = ["model", "method", "variant", "against", "downstream", "evaluated_on"]


def section(results: Results) -> Section | None:
    """One table of cells, RI, mRI, means on a set, and the differences of every two methods."""
    if results.cells.empty:
        return None
    grid = results.grid
    elsewhere = grid.elsewhere[grid.elsewhere["arm"].isin(results.shown["arm"])]
    parts = [
        _rows(results, elsewhere, ["arm"], grid.mri),
        _rows(results, elsewhere, ["arm", "downstream"], grid.ri),
        _rows(results, elsewhere, ["arm", "evaluated_on"]),
        _differences(results),
        _rows(results, grid.cells.loc[results.cells.index], ["arm", "downstream", "evaluated_on"]),
    ]
    data = pandas.concat([part for part in parts if len(part)], ignore_index=True)
    names = results.shown.set_index("arm")[["model", "method", "variant"]]
    data = names.loc[data["arm"]].reset_index(drop=True).join(data.drop(columns="arm"))
    numbers = [name for name in data if name not in COLUMNS]
    return Section(
        "explorer",
        f"All numbers: {len(data):,} rows to filter",
        f"Evaluated on {OTHERS}: RI, a mean over the sets that a model was not fine-tuned on. "
        f"Fine-tuned on {EACH}: a mean over these sets, and so mRI. against: what the change in "
        "points is from, the pre-trained model or another method; p is corrected (Holm) over all "
        "pairs for mRI, and over all pairs and sets for sets. Intervals of the other numbers are "
        "in intervals.csv.",
        tables=[
            Table(
                "explorer",
                "Accuracy in percent before and after fine-tuning, its change in points, and what "
                "the predictions are like, in percent and points; with 95% intervals.",
                data[[*COLUMNS, *numbers]],
            )
        ],
    )


def _rows(
    results: Results, cells: pandas.DataFrame, by: list[str], change: Means | None = None
) -> pandas.DataFrame:
    """A row a group of the grid's cells: the means of all its numbers. change: means of the same
    groups that the change is, where it is another than that of the accuracies."""
    grid = results.grid
    before = grid.mean(cells, by, of="before")
    table = before.keys.assign(
        before_pct=before.values(),
        against="pre-trained",
        **{k: v for k, v in {"downstream": EACH, "evaluated_on": OTHERS}.items() if k not in by},
    )
    for numbers in (
        grid.mean(cells, by).table("accuracy_pct", clip=True),
        (change or grid.mean(cells, by, of="change")).table("change_pts"),
        measures(results, cells, by),
    ):
        table = table.merge(numbers, on=by, how="left")
    return table


def _differences(results: Results) -> pandas.DataFrame:
    rows, titles = results.comparisons, results.shown.set_index("arm")["method"]
    names = {f"difference_{end}": f"change_{end}" for end in ("pts", "low", "high")}
    table = rows.drop(columns="p").rename(columns=names | {"p_corrected": "corrected_p"})
    return table.assign(
        against=rows["against"].map(titles),
        downstream=EACH,
        evaluated_on=rows["evaluated_on"].replace("", OTHERS),
    )
