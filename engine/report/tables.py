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
from engine.report import certainty, page, table
from engine.report.certainty import Certainty

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Results:
    """What a run's stored predictions say: read, drawn and worked out once."""

    gathered: Grid
    summary: Summary
    sure: Certainty


def results(run: FinishedCampaign) -> Results:
    """What the predictions say that a record names."""
    record = run.record
    gathered = metrics.gather(run.evaluations)
    summary = metrics.summarise(gathered, record.sets)
    sure = Certainty.of(gathered, summary, record.sets, record.upstream)
    return Results(gathered, summary, sure)


def write(run: FinishedCampaign, found: Results) -> Path:
    """Write tables and page into the campaign's report; the page's path."""
    record, summary, folder = run.record, found.summary, run.report
    metrics.write_csv(folder, summary)
    notes = _of_sample(run)
    certainty.write_csv(folder, found.sure)
    matrix = record.matrix()
    if matrix is not None:
        distances.write_csv(folder / "distances.csv", matrix)
    path = page.write(
        folder,
        title=f"{Path(record.name).stem}: what fine-tuning does to robustness",
        accuracy=summary.accuracy,
        mri=summary.mri,
        sets=record.sets,
        upstream=record.upstream,
        methods=record.methods,
        settings=record.settings,
        credits=record.credits,
        contact_sheet=base64.b64decode(record.contact_sheet) or None,
        published=recipe.published(),
        holdout=record.holdout,
        notes=notes,
        distances=matrix,
        sure=found.sure,
    )
    text = table.table(
        summary.accuracy,
        summary.mri,
        sets=record.sets,
        upstream=record.upstream,
        methods=record.methods,
        notes=notes,
    )
    write_atomic(folder / campaign.TABLE, (text + "\n").encode())
    write_atomic(folder / campaign.STAMP, run.place.name.encode())
    return path


def _of_sample(run: FinishedCampaign) -> Sequence[str]:
    """Write how far a sample's numbers may be off, and say so; nothing without a sample."""
    sets = run.record.sets
    if not run.samples:
        return []
    samples = {name: run.samples[name] for name in sets}  # which the budget is a share of
    sequential = run.record.sequential
    found = half_widths.half_widths(run.evaluations, samples, sets, sequential=sequential)
    half_widths.write(run.report, run.place, found, samples)
    return [half_widths.note(found, samples)]


def finish(plan: Plan, device: torch.device) -> Path:
    """A campaign's last job: record, tables and page from what the store holds; the page's path."""
    from engine.grid import make_record, workflow  # the rest of this module needs no torch

    run = record.write(plan.path.parent, make_record.record_of(plan, device))
    path = write(run, results(run))
    workflow.advance(plan.path, "report", 1, 1)
    return path
