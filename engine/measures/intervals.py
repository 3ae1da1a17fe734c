"""95% intervals of all that a grid reports: accuracies, RI, mRI, and what predictions are like."""

from __future__ import annotations

import pandas

from engine.measures import behaviour
from engine.measures.metrics import KEY, Grid, Means, measures
from engine.measures.rows import PRE
from engine.measures.tables import ordered

CHANGE = "change"
COLUMNS = [*KEY, "quantity", "value", "low", "high"]


def intervals(grid: Grid) -> pandas.DataFrame:
    """Every number and its percentile interval over source images and training seeds (the
    population: `bootstrap`); `COLUMNS`.

    Rows: accuracies, RI, mRI, then each measure that has draws, and its mean over the sets that a
    model was not trained on, then the change on the upstream set and its mean, then the mean of
    each measure on each set, over the models that were not trained on it. A share of 0 or 100% has
    no width, since all images agree.
    """
    cells, upstream = grid.cells, grid.upstream
    on_downstream = cells["downstream"] == cells["evaluated_on"]
    trained = cells[(cells["method"] != PRE) & ~on_downstream]
    elsewhere = cells[cells["evaluated_on"].isin(grid.sets) & ~on_downstream]
    names = [name for name in measures() if name in grid.draws]
    each = grid.mean(cells, ["arm", "downstream", "evaluated_on"])
    parts = [_rows(each, "accuracy"), _rows(grid.ri, "RI"), _rows(grid.mri, "mRI")]
    parts += [_rows(each, name) for name in names]
    others = grid.mean(elsewhere, ["arm"])
    parts += [_rows(others, name) for name in names]
    changed = trained[trained["evaluated_on"] == upstream]
    counted = changed[changed["downstream"].isin(grid.downstreams)]
    by_cell = grid.mean(changed, ["arm", "downstream", "evaluated_on"], of="change")
    by_arm = grid.mean(counted, ["arm", "evaluated_on"], of="change")
    parts += [_rows(by_cell, CHANGE), _rows(by_arm, CHANGE)]
    on_sets = grid.mean(trained, ["arm", "evaluated_on"])
    of_measures = pandas.concat([_rows(on_sets, name) for name in names])
    parts.append(ordered(of_measures, evaluated_on=[*grid.sets, upstream]))
    table = pandas.concat([part for part in parts if len(part)], ignore_index=True)
    return grid.named(table)[COLUMNS]


def _rows(means: Means, quantity: str) -> pandas.DataFrame:
    measure = quantity if quantity in means.grid.draws else "accuracy"
    rows = means.table("value", measure, clip=quantity in behaviour.SHARES)
    rows = rows.rename(columns={"value_low": "low", "value_high": "high"})
    blank = {name: "" for name in ("downstream", "evaluated_on") if name not in rows}
    return rows.assign(quantity=quantity, **blank)
