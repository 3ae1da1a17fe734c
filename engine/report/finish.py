"""A campaign's report on disk: the terminal's table, CSV files, the page, and its exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.grid import campaign, half_widths, record, stamp
from engine.grid.campaign import Plan
from engine.grid.record import FinishedCampaign
from engine.machine.files import write_atomic
from engine.measures import distances, metrics
from engine.report import (
    certainty,
    exports,
    headline,
    page,
    sections,
    sweep_rows,
    table,
    tables,
)
from engine.report.sections import sweep
from engine.report.tables import Results

if TYPE_CHECKING:
    import torch


def write(run: FinishedCampaign, results: Results, *, figures: bool = False) -> Path:
    """Write tables and page into the campaign's report; the page's path. figures: also every
    figure as SVG and PDF."""
    folder = run.report
    notes = _of_sample(run)
    path = write_into(folder, results, notes, figures=figures)
    stamp.write(folder, run.place.name)
    return path


def write_merged(
    folder: Path,
    runs: Sequence[FinishedCampaign],
    models_csv: Path | None = None,
    *,
    figures: bool = False,
) -> Path:
    """Write one report of several campaigns into a folder; the page's path. models_csv: as in
    `tables.results`."""
    notes = [
        f"{run.record.name}: a sample of the images of {', '.join(run.record.samples)}"
        for run in runs
        if run.record.samples
    ]
    return write_into(folder, tables.merged(runs, models_csv), notes, figures=figures)


def write_into(
    folder: Path, results: Results, notes: Sequence[str] = (), *, figures: bool = False
) -> Path:
    """Write a report into a folder; the page's path."""
    metrics.write_csv(folder, results.summary)
    certainty.write_csv(folder, results.sure)
    files = [*("accuracy.csv", "mri.csv"), *certainty.FILES]
    matrix = results.record.matrix()
    if matrix is not None:
        distances.write_csv(folder / "distances.csv", matrix)
        files += ["distances.csv", "distances_pairs.csv"]
    warnings = []
    if results.record.sweep is not None:
        files += sweep_rows.write(folder, results)
        warnings.append(sweep.SELECTION)
    made = sections.of(results)
    exports.write_tables(folder, made)
    if figures:
        exports.write_figures(folder, made)
    title = f"{Path(results.record.name).stem}: what fine-tuning does to robustness"
    heading, lead = headline.heading(title, results), headline.lead(results)
    incomplete = [f"Incomplete: {note}." for note in notes]
    content = page.Page(title, heading, lead, made, incomplete, files)
    path = page.write(folder / campaign.PAGE, content)
    text = table.table(results.models, [*notes, *warnings]) + "\n"
    write_atomic(folder / campaign.TABLE, text.encode())
    return path


def _of_sample(run: FinishedCampaign) -> Sequence[str]:
    """Write the half-widths of a sample's numbers; a note on them, or none without a sample."""
    sets = run.record.sets
    if not run.samples:
        return []
    samples = {name: run.samples[name] for name in sets}  # the budget is a share of these
    sequential = run.record.sequential
    intervals = half_widths.half_widths(
        run.evaluations, samples, sets, run.record.downstreams, sequential=sequential
    )
    half_widths.write(run.report, run.place, intervals, samples)
    return [half_widths.note(intervals, samples)]


def finish(plan: Plan, device: torch.device) -> Path:
    """A campaign's last job: record, tables and page; the page's path."""
    from engine.grid import make_record, progress  # the rest of this module needs no torch
    from engine.recipe.request import Request
    from engine.report import tracked

    run = record.write(plan.path.parent, make_record.record_of(plan, device))
    results = tables.results(run)
    path = write(run, results)
    recipe = Request(plan.name, plan.overrides).recipe(plan.methods[0])
    tracked.accuracies(recipe, results.summary.accuracy)
    progress.advance(plan.path, "report", 1, 1)
    return path
