"""Write a report's numbers: CSV files and `results.json`. The extras add theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas

from engine.campaigns.plan import RESULTS
from engine.machine.files import write_atomic
from engine.measures.all_numbers import all_numbers
from engine.measures.metrics import KEY, column_name, measures
from engine.measures.rows import REPLICATE, of_role
from engine.measures.tables import write_csv
from engine.otdd import distance_matrix
from engine.report import results_file
from engine.report.results import Results

INTERVALS = "intervals.csv"


def write_numbers(folder: Path, results: Results) -> list[str]:
    """Write a report's numbers into a folder. Returns the files' names."""
    made = tables(results)
    for name, table in made.items():
        write_csv(folder / name, table)
    content = results_file.campaign_results(results, made[INTERVALS])
    write_atomic(folder / RESULTS, results_file.encode(content))
    names = [*made, RESULTS]
    if (distances := results.record.distances) is not None:
        distance_matrix.write_csv(folder / "distances.csv", distance_matrix.Matrix.of(distances))
        names += ["distances.csv", "distances_pairs.csv"]
    return names


def tables(results: Results) -> dict[str, pandas.DataFrame]:
    """The report's CSV files by name, as described in docs/results.md."""
    grid, cells = results.grid, results.grid.cells
    headline = cells.drop_duplicates("arm").set_index("arm")["headline"]
    units = {name: column_name(name) for name in measures()}
    mri = grid.mri.table("mRI_pts")
    if len(results.disjoint):
        disjoint = grid.disjoint_mri.table("disjoint_mRI_pts").drop(columns="columns")
        mri = mri.merge(disjoint, how="left", on="arm")
    files = {
        "accuracy.csv": grid.accuracies,
        "mri.csv": grid.named(mri.assign(headline=mri["arm"].map(headline))),
        INTERVALS: all_numbers(grid, results.probe_sets),
        "comparisons.csv": _comparisons(results),
        "behaviour.csv": cells[[*KEY, *units]].rename(columns=units),
    }
    if len(results.groups):
        files["groups.csv"] = grid.named(results.groups)
    if len(grid.seeds) > 1 or grid.again is not None:
        files["seeds.csv"] = _by_seed(results)
    for of_extra in results.hooks("tables"):
        files |= of_extra(results)
    return files


def _by_seed(results: Results) -> pandas.DataFrame:
    """Accuracy of each seed: for all cells, or for the replicated columns."""
    grid, columns = results.grid, [*KEY, "seed", "images", "accuracy"]
    names = {"accuracy": "accuracy_pct"}
    if grid.again is None:
        return grid.trained[columns].rename(columns=names)
    seed = {row.seed for row in of_role(results.record.evaluations, REPLICATE)}
    cells = grid.cells[~np.isnan(grid.again)]
    first = cells.assign(seed=grid.seeds[0])
    again = cells.assign(seed=min(seed), accuracy=grid.again[cells.index])
    both = pandas.concat([first, again]).sort_index(kind="stable")
    return both[columns].rename(columns=names)


def _comparisons(results: Results) -> pandas.DataFrame:
    rows = results.comparisons
    against = results.grid.named(rows[["against"]].rename(columns={"against": "arm"}))
    table = results.grid.named(rows.drop(columns="against"))
    for k, name in enumerate(("method", "variant", "alpha"), start=5):
        table.insert(k, f"against_{name}", against[name])
    return table
