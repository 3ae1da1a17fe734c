"""95% intervals of all numbers of a grid: accuracies, RI, mRI, and measures of predictions."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.metrics import KEY, Grid
from engine.measures.tables import with_ends, without_unit

INTERVAL = ["value", "low", "high"]


def all_numbers(grid: Grid, probe_sets: pandas.DataFrame) -> pandas.DataFrame:
    """Every number of `Grid.numbers` with its percentile interval over source images and training
    seeds (`bootstrap`, `seeds`), one row each: `KEY`, quantity, `INTERVAL`. Then the same of
    `metrics.on_probe_sets`, which may be empty."""
    numbers, parts = grid.named(grid.numbers), []
    of_set, of_column = numbers["evaluated_on"] != "", numbers["downstream"] != ""
    change = np.select([of_set, of_column], ["change", "RI"], "mRI").astype(object)
    changes = {"change": change, "disjoint_change": "disjoint_" + change}
    for number in map(str, numbers):
        quantity, columns = without_unit(number), with_ends(number)
        if columns[1] in numbers:
            rows = numbers.assign(quantity=changes.get(quantity, quantity))
            rows = rows[[*KEY, "quantity", *columns]].dropna(subset=columns)
            parts.append(rows.set_axis([*KEY, "quantity", *INTERVAL], axis=1))
    for number in ("accuracy_pct", "change_pts") if len(probe_sets) else ():
        quantity, columns = f"probe_{without_unit(number)}", with_ends(number)
        rows = probe_sets.assign(quantity=quantity, downstream="")[[*KEY, "quantity", *columns]]
        parts.append(rows.set_axis([*KEY, "quantity", *INTERVAL], axis=1))
    return pandas.concat(parts, ignore_index=True)
