"""All numbers of the report in one table that can be filtered and sorted."""

from __future__ import annotations

import pandas

from engine.measures import scores
from engine.measures.tables import with_ends
from engine.report.results import Results
from engine.report.section import Section, Table

OTHERS, EACH = "others", "all"
COLUMNS = ["model", "method", "variant", "against", "downstream", "evaluated_on"]


def section(results: Results) -> Section | None:
    """One table of cells, RI, mRI, means per dataset, and differences between methods."""
    if results.cells.empty:
        return None
    names = dict(zip(with_ends("difference_pts"), with_ends("change_pts"), strict=True))
    pairs = results.comparisons.rename(columns=names | {"p_corrected": "corrected_p"})
    pairs = pairs.assign(downstream="")
    titles = results.shown.set_index("arm")["method"]
    pairs["against"] = pairs["against"].map(titles)
    data = pandas.concat([results.grid.numbers, pairs], ignore_index=True)
    data = data.replace({"downstream": {"": EACH}, "evaluated_on": {"": OTHERS}})
    data = data.fillna({"against": "pretrained"})
    data = data.merge(results.shown[["arm", "model", "method", "variant"]], on="arm")
    known = data.dropna(axis=1, how="all")
    numbers = known.filter(
        regex="_(pct|pts|score|nats)$|^(accuracy|(disjoint_)?change)_|^corrected_p$"
    )
    return Section(
        "explorer",
        f"All numbers: {len(data):,} rows to filter",
        f"Evaluated on {OTHERS}: mean over the datasets that a model was not fine-tuned on.\n"
        f"Downstream dataset {EACH}: mean over the models that were not fine-tuned on the dataset "
        "evaluated on.\n"
        f"The change on {OTHERS} is RI for one downstream dataset, and mRI for {EACH}.\n"
        "against: the reference of a change, the "
        "pretrained model or another method. p is corrected (Holm) over all pairs for mRI, and "
        "over all pairs and datasets for datasets. intervals.csv has the other intervals.",
        tables=[
            Table(
                "explorer",
                "Accuracy in percent before and after fine-tuning, its change in points, and "
                f"properties of the predictions, with 95% CIs: {scores.legend()}.",
                data[[*COLUMNS, *numbers]],
            )
        ],
    )
