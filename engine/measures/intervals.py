"""95% intervals of all that a grid reports: accuracies, RI, mRI, and what predictions are like."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.metrics import KEY, Grid
from engine.measures.tables import base

ENDS = ["value", "low", "high"]


def intervals(grid: Grid) -> pandas.DataFrame:
    """Every number of `Grid.numbers` with its percentile interval over source images and training
    seeds (the population: `bootstrap`), a row each: `KEY`, quantity, `ENDS`. A share of 0 or 100%
    has no width, since all images agree."""
    numbers, parts = grid.named(grid.numbers), []
    of_set, of_column = numbers["evaluated_on"] != "", numbers["downstream"] != ""
    change = np.select([of_set, of_column], ["change", "RI"], "mRI")
    for number in map(str, numbers):
        ends = [f"{base(number)}_{end}" for end in ("low", "high")]
        if ends[0] in numbers:
            rows = numbers.assign(quantity=change if base(number) == "change" else base(number))
            rows = rows[[*KEY, "quantity", number, *ends]].dropna(subset=ends)
            parts.append(rows.set_axis([*KEY, "quantity", *ENDS], axis=1))
    return pandas.concat(parts, ignore_index=True)
