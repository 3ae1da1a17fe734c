"""A campaign's report on disk: the terminal's table, CSV files, the page, and its exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.grid import campaign, half_widths, outcomes, record
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
    with outcomes.sealed(run.place):
        for sampled in results.samples.values():
            half_widths.write(folder, sampled.intervals)
        return write_into(folder, results, figures=figures)


def write_merged(
    folder: Path,
    runs: Sequence[FinishedCampaign],
    models_csv: Path | None = None,
    *,
    figures: bool = False,
) -> Path:
    """Write one report of several campaigns into a folder; the page's path. models_csv: as in
    `tables.results`."""
    return write_into(folder, tables.merged(runs, models_csv), figures=figures)


def write_into(folder: Path, results: Results, *, figures: bool = False) -> Path:
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
    notes = _notes(results)
    incomplete = [f"Incomplete: {note}." for note in notes]
    content = page.Page(title, heading, lead, made, incomplete, files)
    path = page.write(folder / campaign.PAGE, content)
    text = table.table(results.models, [*notes, *warnings]) + "\n"
    write_atomic(folder / campaign.TABLE, text.encode())
    return path


def _notes(results: Results) -> list[str]:
    """What a reader must know before any number: what was sampled, and what is missing."""
    notes = [
        f"{label}: {sampled.note}" if label else sampled.note
        for label, sampled in results.samples.items()
    ]
    if missing := results.record.missing:
        names = ", ".join(dict.fromkeys(column.column for column in missing))
        notes.append(f"models fine-tuned on {names} are not in this report")
    return notes


def finish(plan: Plan, device: torch.device) -> Path:
    """A campaign's last job: record, tables and page; the page's path."""
    from engine.grid import make_record, progress  # the rest of this module needs no torch

    run = record.write(plan.place, make_record.record_of(plan, device))
    results = tables.results(run)
    path = write(run, results)
    progress.advance(plan.path, "report", 1, 1)
    return path
