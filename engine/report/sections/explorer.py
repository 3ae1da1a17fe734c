"""Every number of the report in one table, to filter and to sort."""

from __future__ import annotations

import pandas

from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.sure import measures

OTHERS, EACH = "others", "all"
COLUMNS = ["model", "method", "variant", "against", "downstream", "evaluated_on"]


def section(results: Results) -> Section | None:
    """One table of cells, RI, mRI, means on a set, and the differences of every two methods."""
    if results.cells.empty:
        return None
    elsewhere = results.grid.elsewhere
    elsewhere = elsewhere[elsewhere["arm"].isin(results.shown["arm"])]
    each = ["arm", "downstream", "evaluated_on"]
    cells = results.grid.cells.loc[results.cells.index]
    parts = [
        _rows(results, elsewhere, ["arm"], results.grid.mri),
        _rows(results, elsewhere, ["arm", "downstream"], results.grid.ri),
        _rows(results, elsewhere, ["arm", "evaluated_on"]),
        _differences(results),
        _rows(results, cells, each),
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
    results: Results, cells: pandas.DataFrame, by: list[str], change=None
) -> pandas.DataFrame:
    """A row a group of the grid's cells: the means of all its numbers. change: means of the same
    groups that the change is, where it is another than that of the accuracies."""
    grid = results.grid
    changes = (change or grid.mean(cells, by, of="change")).table("change_pts")
    numbers = [
        grid.mean(cells, by).table("accuracy_pct", clip=True),
        changes,
        measures(results, cells, by),
    ]
    before = grid.mean(cells, by, of="before")
    table = before.keys.assign(before_pct=before.values())
    for of_rows in numbers:
        table = table.merge(of_rows, on=by, how="left")
    blank = {"downstream": EACH, "evaluated_on": OTHERS}
    return table.assign(
        against="pre-trained", **{name: text for name, text in blank.items() if name not in by}
    )


def _differences(results: Results) -> pandas.DataFrame:
    rows = results.comparisons
    titles = results.shown.set_index("arm")["method"]
    return pandas.DataFrame(
        {
            "arm": rows["arm"],
            "against": rows["against"].map(titles),
            "downstream": EACH,
            "evaluated_on": rows["evaluated_on"].replace("", OTHERS),
            "change_pts": rows["difference_pts"],
            "change_low": rows["difference_low"],
            "change_high": rows["difference_high"],
            "corrected_p": rows["p_corrected"],
        }
    )
