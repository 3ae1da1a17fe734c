"""Write a campaign's report: numbers, terminal table, page, and exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.campaigns import job_states, make_record, record, seal
from engine.campaigns.plan import PAGE, REPORT, TABLE, Plan
from engine.campaigns.record import FinishedCampaign
from engine.machine.files import write_atomic
from engine.recipe import extras
from engine.recipe.finder import allow_users_files
from engine.report import exports, headline, number_files, page, sections, terminal
from engine.report.results import Results, of_campaign
from engine.report.sections import about, ranking

CITATIONS = "citations.bib"


def write(run: FinishedCampaign, results: Results, *, figures: bool = False) -> Path:
    """Write a campaign's report. Returns the page's path. figures: also write figures as SVG and
    PDF, as is always done if the report has such files already."""
    figures = figures or any((run.place.report / exports.FIGURES).glob("*.svg"))
    with seal.sealed(run.place):
        return write_into(run.place.report, results, figures=figures)


def write_into(folder: Path, results: Results, *, figures: bool = False) -> Path:
    """Write a report into a folder. Returns the page's path."""
    names, record = [*number_files.write_numbers(folder, results), CITATIONS], results.record
    write_atomic(folder / CITATIONS, f"{about.bibtex(results)}\n".encode())
    parts = sections.of(results)
    exports.write(folder, parts, drawn=figures)
    title = f"{Path(record.name).stem}: robustness after fine-tuning"
    missing = ", ".join(dict.fromkeys(column.column for column in record.missing))
    smoke = headline.SMOKE_RUN.format(record.limit) if record.limit else ""
    notes = [f"models fine-tuned on {missing} are not in this report"] if missing else []
    notes += about.left_out(results)
    path = page.write(
        folder / PAGE,
        parts,
        title=title,
        heading=headline.heading(title, results),
        lead=headline.lead(results),
        notes=([f"{smoke.capitalize()}."] if smoke else [])
        + [f"Incomplete: {note}." for note in notes],
        files=names,
    )
    notes = [smoke, *notes, ranking.selection_note(results)]
    text = terminal.table(results, [*filter(None, notes)])
    write_atomic(folder / TABLE, f"{text}\n".encode())
    return path


def finish(plan: Plan) -> Path:
    """Write a campaign's record and report, its last job. Returns the page's path."""
    run = record.write_record(plan.place, make_record.record_of(plan))
    with allow_users_files():
        modules = extras.modules(plan.recipe)  # first, because they may define metrics
    path = write(run, replace(of_campaign(run), extras=modules))
    job_states.advance(plan.place, REPORT, 1, 1)
    return path
