"""Write a campaign's report: terminal table, CSV files, page, and exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas

from engine.campaigns import job_states, make_record, record, seal
from engine.campaigns.plan import PAGE, REPORT, RESULTS, TABLE, Plan
from engine.campaigns.record import FinishedCampaign
from engine.machine.files import write_atomic
from engine.measures.intervals import intervals
from engine.measures.metrics import KEY, measures
from engine.measures.rows import REPLICATE, of_role
from engine.measures.tables import with_ends, write_csv
from engine.otdd import distance_matrix
from engine.recipe import extras
from engine.recipe.finder import allow_users_files
from engine.report import exports, headline, page, results_file, sections, terminal, tuning
from engine.report.results import Results, of_campaign
from engine.report.sections import about

INTERVALS, CITATIONS = "intervals.csv", "citations.bib"


def write(run: FinishedCampaign, results: Results, *, figures: bool = False) -> Path:
    """Write a campaign's report. Returns the page's path. figures: also write figures as SVG and
    PDF, as is always done if the report has such files already."""
    figures = figures or any((run.place.report / exports.FIGURES).glob("*.svg"))
    with seal.sealed(run.place):
        return write_into(run.place.report, results, figures=figures)


def write_numbers(folder: Path, results: Results) -> list[str]:
    """Write a report's numbers into a folder. Returns the files' names."""
    made = tables(results)
    for name, table in made.items():
        write_csv(folder / name, table)
    content = results_file.of(results, made[INTERVALS])
    write_atomic(folder / RESULTS, results_file.encode(content))
    names = [*made, RESULTS]
    if (matrix := results.record.matrix()) is not None:
        distance_matrix.write_csv(folder / "distances.csv", matrix)
        names += ["distances.csv", "distances_pairs.csv"]
    return names


def write_into(folder: Path, results: Results, *, figures: bool = False) -> Path:
    """Write a report into a folder. Returns the page's path."""
    names, record = [*write_numbers(folder, results), CITATIONS], results.record
    write_atomic(folder / CITATIONS, f"{about.bibtex(results)}\n".encode())
    parts = sections.of(results)
    exports.write(folder, parts, drawn=figures)
    title = f"{Path(record.name).stem}: robustness after fine-tuning"
    missing = ", ".join(dict.fromkeys(column.column for column in record.missing))
    smoke = headline.SMOKE_RUN.format(record.limit) if record.limit else ""
    notes = [f"models fine-tuned on {missing} are not in this report"] * bool(missing)
    notes += about.left_out(results)
    path = page.write(
        folder / PAGE,
        parts,
        title=title,
        heading=headline.heading(title, results),
        lead=headline.lead(results),
        notes=[f"{smoke.capitalize()}."] * bool(smoke) + [f"Incomplete: {note}." for note in notes],
        files=names,
    )
    warning = tuning.SELECTION * tuning.is_varied(results)
    text = terminal.table(results, [*filter(None, [smoke, *notes, warning])])
    write_atomic(folder / TABLE, f"{text}\n".encode())
    return path


def tables(results: Results) -> dict[str, pandas.DataFrame]:
    """The report's CSV files by name, as described in docs/results.md."""
    grid, cells = results.grid, results.grid.cells
    headline = cells.drop_duplicates("arm").set_index("arm")["headline"]
    mri = grid.mri.table("mri")
    if len(results.disjoint):
        disjoint = grid.disjoint_mri.table("disjoint_mri").drop(columns="columns")
        mri = mri.merge(disjoint, how="left", on="arm")
    files = {
        "accuracy.csv": cells[[*KEY, "n", "accuracy", "headline"]],
        "mri.csv": grid.named(mri.assign(headline=mri["arm"].map(headline))),
        INTERVALS: intervals(grid, results.probe_sets),
        "comparisons.csv": _comparisons(results),
        "behaviour.csv": cells[[*KEY, *measures()]],
    }
    if len(results.leak):
        files["leak.csv"] = grid.named(results.leak)
    if len(results.groups):
        files["groups.csv"] = grid.named(results.groups)
    if len(grid.seeds) > 1 or grid.again is not None:
        files["seeds.csv"] = _by_seed(results)
    for of_extra in results.hooks("tables"):
        files |= of_extra(results)
    return files


def _by_seed(results: Results) -> pandas.DataFrame:
    """Accuracy of each seed: for all cells, or for the replicated columns."""
    grid, columns = results.grid, [*KEY, "seed", "n", "accuracy"]
    if grid.again is None:
        return grid.trained[columns]
    seed = {row.seed for row in of_role(results.record.evaluations, REPLICATE)}
    cells = grid.cells[~np.isnan(grid.again)]
    first = cells.assign(seed=grid.seeds[0])
    again = cells.assign(seed=min(seed), accuracy=grid.again[cells.index])
    both = pandas.concat([first, again]).sort_index(kind="stable")
    return both[columns]


def _comparisons(results: Results) -> pandas.DataFrame:
    names = dict(zip(with_ends("difference_pts"), ["difference", "low", "high"], strict=True))
    rows = results.comparisons.rename(columns=names)
    against = results.grid.named(rows[["against"]].rename(columns={"against": "arm"}))
    table = results.grid.named(rows.drop(columns="against"))
    for k, name in enumerate(("method", "variant", "alpha"), start=5):
        table.insert(k, f"against_{name}", against[name])
    return table


def finish(plan: Plan) -> Path:
    """Write a campaign's record and report, its last job. Returns the page's path."""
    run = record.write(plan.place, make_record.record_of(plan))
    with allow_users_files():
        modules = extras.modules(plan.recipe)  # first, because they may define metrics
    path = write(run, replace(of_campaign(run), extras=modules))
    job_states.advance(plan.place, REPORT, 1, 1)
    return path
