"""A campaign's tables and page, made from its record and the store of predictions. No torch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import recipe
from engine.grid import campaign, half_widths, record
from engine.grid.campaign import Plan
from engine.grid.record import FinishedCampaign
from engine.machine.files import write_atomic
from engine.measures import distances, metrics
from engine.measures.metrics import Grid, Summary
from engine.measures.standings import Standings, standings
from engine.report import certainty, page, table
from engine.report.certainty import Certainty

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Results:
    """What a campaign's stored predictions show."""

    grid: Grid
    summary: Summary
    models: Sequence[Standings]
    sure: Certainty


def results(run: FinishedCampaign) -> Results:
    """Results from the predictions that a record names."""
    record = run.record
    grid = metrics.gather(run.evaluations)
    summary = metrics.summarise(grid, record.sets, record.downstreams)
    models = standings(
        summary.accuracy,
        summary.mri,
        sets=record.sets,
        upstream=record.upstream,
        methods=record.methods,
        downstreams=record.downstreams,
    )
    sure = Certainty.of(grid, summary, record.sets, record.upstream, record.downstreams)
    return Results(grid, summary, models, sure)


def write(run: FinishedCampaign, results: Results) -> Path:
    """Write tables and page into the campaign's report; the page's path."""
    record, folder = run.record, run.report
    metrics.write_csv(folder, results.summary)
    certainty.write_csv(folder, results.sure)
    notes = _of_sample(run)
    matrix = record.matrix()
    if matrix is not None:
        distances.write_csv(folder / "distances.csv", matrix)
    path = page.write(
        folder,
        title=f"{Path(record.name).stem}: what fine-tuning does to robustness",
        models=results.models,
        upstream=record.upstream,
        settings=record.settings,
        credits=record.credits,
        contact_sheet=base64.b64decode(record.contact_sheet) or None,
        published=recipe.published(),
        holdout=record.holdout,
        notes=notes,
        distances=matrix,
        sure=results.sure,
    )
    text = table.table(results.models, notes) + "\n"
    write_atomic(folder / campaign.TABLE, text.encode())
    write_atomic(folder / campaign.STAMP, run.place.name.encode())
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
    from engine.grid import make_record, workflow  # the rest of this module needs no torch

    run = record.write(plan.path.parent, make_record.record_of(plan, device))
    path = write(run, results(run))
    workflow.advance(plan.path, "report", 1, 1)
    return path
