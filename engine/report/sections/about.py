"""About the numbers: what they mean, what was run, what is missing, and whose images these are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean

import numpy as np
import pandas

from engine.grid.attempts import Attempt
from engine.measures.rows import PRE
from engine.report.headline import averaged_over, measured_on
from engine.report.results import ROWS, Results, published, slides
from engine.report.section import Picture, Section, Table
from engine.report.text import counted, rounded

DRAWINGS = (
    "Of emoji-RIB: a class is a concept, of which each style has a single drawing in some "
    "renderings (background, scale, shift, rotation). A held-out image of a set that a model was "
    "trained on is another rendering of a drawing that it has seen, so accuracy on the set "
    "fine-tuned on and on upstream is not accuracy on new drawings. RI is: it counts the other "
    "sets alone, whose drawings are other vendors'. All drawings of a concept are one source "
    "image, so the intervals are about other concepts, drawn in these styles."
)
GLOSSARY = {
    "fine_tune": "Every weight is trained on the downstream set.",
    "linear_probe": "Only the head is trained; the backbone stays as it was.",
    "visual_prompt": "A frame of trained pixels is laid around each image; the network is frozen.",
    "lora": "Low-rank matrices are trained beside the frozen weights, then merged into them.",
    "ewc": "Fine-tuning pulled back to the pre-trained weights, hardest where the Fisher "
    "information says that a weight matters upstream.",
    "lwf": "Fine-tuning that also has to imitate the pre-trained model's outputs.",
    "lp_ft": "A linear probe first, then fine-tuning from there.",
    "wise_ft": "Weights between the pre-trained (α = 0) and the fine-tuned (α = 1) model; "
    "tables show α = 0.5 where they name no other.",
    "soup": "The plain average of the weights of several models fine-tuned in different ways.",
    "greedy_soup": "An average that takes a model in only where held-out downstream images agree.",
}


def contact_sheet(results: Results) -> Section | None:
    png = results.record.contact_sheet
    if not png:
        return None
    alt = f"Samples of {results.record.upstream} and {', '.join(results.record.sets)}"
    return Section(
        "contact-sheet",
        "What the sets look like",
        "Images of every set, of the size that the models see.",
        pictures={"": [Picture(f"Contact sheet. {alt}.", f"data:image/png;base64,{png}")]},
    )


def how_to_read(results: Results) -> Section | None:
    """What the numbers mean, and what they cannot say."""
    seeds = len(results.grid.seeds)
    means = {
        model: fmean(results.before(model)[name] for name in results.grid.sets)
        for model in results.models
    }
    before = ", ".join(f"{rounded(mean)}%{results.of(model)}" for model, mean in means.items())
    identity = (
        f"Mean accuracy on the other sets is therefore mRI plus the mean accuracy before: {before}."
        if results.is_square
        else "The sets that are only evaluated count in RI of every column."
    )
    statements = [
        f"RI of a method on one set is the mean, over {measured_on(results)}, of accuracy after "
        f"fine-tuning minus accuracy before; mRI is the mean of RI over {averaged_over(results)}. "
        f"{identity}",
        "A positive mRI means that learning one set carried over to the others; a negative one "
        "means that it damaged what the pre-trained model could do. The set fine-tuned on and the "
        f"{results.record.upstream} set are shown, but are no part of RI.",
        "Intervals hold the middle 95% of bootstrap resamples of the source images. Copies of one "
        "source in several sets are drawn together, and every model is measured against the "
        "pre-trained one on the same draw.",
        f"They cover training seeds too, {seeds} of them."
        if seeds > 1
        else "The intervals are about the choice of images; another training seed is not in them, "
        "so take a difference of a point or two between methods as unproven until several seeds "
        "agree.",
    ]
    if results.record.contact_sheet:  # of emoji-RIB alone
        statements.append(DRAWINGS)
    if any(published(model) for model in results.models):
        statements.append(f"Published numbers: {slides()['source']}.")
    return Section("how-to-read", "How to read this", statements=statements)


def methods(results: Results) -> Section | None:
    """The canonical methods that were run, a sentence each."""
    rows = results.shown[results.shown["variant"] != "paper"]
    known = rows.assign(what_it_does=rows["key"].map(GLOSSARY)).dropna(subset="what_it_does")
    if known.empty:
        return None
    data = known.drop_duplicates("method")[["method", "what_it_does"]]
    return Section(
        "methods", "The methods", tables=[Table("methods", "The methods of this report.", data)]
    )


def coverage(results: Results) -> Section | None:
    """What is not in the numbers: missing columns and cells, failed jobs, distances."""
    record, cells = results.record, results.grid.cells
    known = set(zip(cells["arm"], cells["downstream"], cells["evaluated_on"], strict=True))
    expected = [
        (arm, i, j)
        for arm in dict.fromkeys(cells.loc[cells["method"] != PRE, "arm"])
        for i in record.downstreams
        for j in (*record.sets, record.upstream)
    ]
    absent = [cell for cell in expected if cell not in known]
    failed = [attempt for attempt in record.attempts if attempt.failure]
    statements = [
        f"{len(expected) - len(absent):,} of {len(expected):,} cells (model, method, set "
        "fine-tuned on, set evaluated on) were trained and evaluated, each with "
        f"{counted('training seed', len(results.grid.seeds))}.",
        "Every set was evaluated on "
        + (
            "the images that are held out of every training."
            if record.holdout
            else "all of its images; nothing is held out, so a model's own set on those that it "
            "was trained on."
        ),
    ]
    matrix = record.matrix()
    if matrix is None:
        statements.append("Distances between the sets are not part of this report.")
    elif apart := int(np.isnan(matrix.values).sum()) // 2:
        statements.append(f"{apart} pairs of sets have no distance: they did not converge.")
    if failed:
        statements.append(
            f"{len(failed)} of {len(record.attempts)} attempts at jobs did not finish them; a "
            "later attempt goes on from what the store holds."
        )
    tables = {
        "missing-columns": (
            "Columns of the grid (a set fine-tuned on, in a setting) that are missing, and why; "
            "mRI is a mean over the others.",
            [dataclasses.asdict(column) for column in record.missing],
        ),
        "missing-cells": (
            "Cells that were not evaluated.",
            [
                {"method": str(results.grid.arms[arm]), "downstream": i, "evaluated_on": j}
                for arm, i, j in absent
            ],
        ),
        "failed-attempts": (
            "Attempts at jobs that did not finish them, and why.",
            [
                {
                    "campaign": attempt.campaign,
                    "job": attempt.job,
                    "started": _time(attempt.started),
                    "hours": round(attempt.hours, 3),
                    "why": attempt.failure,
                }
                for attempt in failed
            ],
        ),
    }
    gone = [f"{len(record.missing)} columns"] * bool(record.missing)
    gone += [f"{len(absent)} cells"] * bool(absent)
    return Section(
        "coverage",
        f"{' and '.join(gone)} are missing" if gone else "Nothing was left out",
        statements=statements,
        tables=[
            Table(name, caption, _named(pandas.DataFrame(rows)))
            for name, (caption, rows) in tables.items()
            if rows
        ],
    )


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _named(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table, with the campaign's name where there is one."""
    is_alone = "campaign" in table and not table["campaign"].any()
    return table.drop(columns="campaign") if is_alone else table


def what_was_run(results: Results) -> Section | None:
    """Settings, versions, hardware and hours, and every row's hyper-parameters."""
    settings = [(k, str(v)) for k, v in results.record.settings.items() if k.split(",")[0] != ROWS]
    attempts = [attempt for attempt in results.record.attempts if attempt.ended is not None]
    hyper_parameters = [
        {"method": results.record.methods.get(key, key)}
        | {
            name: ", ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in values.items()
        }
        for key, values in results.recipes
    ]
    tables = [
        Table(
            "settings",
            "What it takes to get these numbers again.",
            pandas.DataFrame(settings, columns=["setting", "value"]),
        ),
        Table(
            "hours",
            "Hours of the jobs, by stage and device; a job on several GPUs counts once.",
            _hours(attempts),
        ),
        Table(
            "hyper-parameters",
            "Every method's settings as its recipe resolves them. A method that takes no steps, "
            "such as a mix of finished cells or a probe that is fitted to its optimum, does not "
            "use those of optimizer and training.",
            pandas.DataFrame(hyper_parameters),
        ),
    ]
    tables = [table for table in tables if len(table.data)]
    campaigns = dict.fromkeys(attempt.campaign for attempt in attempts)
    statements = [_span([of for of in attempts if of.campaign == name]) for name in campaigns]
    return Section("settings", "What was run", "", statements, tables=tables) if tables else None


def _span(attempts: Sequence[Attempt]) -> str:
    """From the first job of a campaign to the last."""
    start = min(attempt.started for attempt in attempts)
    end = max(attempt.ended or start for attempt in attempts)
    name = f"{attempts[0].campaign}: " if attempts[0].campaign else ""
    return (
        f"{name}{(end - start) / 3600:.2f} hours from the start of the first job ({_time(start)}) "
        f"to the end of the last, {sum(attempt.hours for attempt in attempts):.2f} job-hours in "
        "them. Neither the report's own job nor an attempt that was killed is counted."
    )


def _hours(attempts: Sequence[Attempt]) -> pandas.DataFrame:
    """A row a campaign, stage, device and number of GPUs or processes at work."""
    names = ["campaign", "stage", "device", "processes"]
    columns = [*names, "job", "hours"]
    rows = [[getattr(attempt, name) for name in columns] for attempt in attempts]
    groups = pandas.DataFrame(rows, columns=columns).groupby(names, sort=False)
    numbers = {
        "jobs": ("job", "nunique"),
        "attempts": ("job", "size"),
        "job_hours": ("hours", "sum"),
    }
    return _named(groups.agg(**numbers).reset_index())


def credits(results: Results) -> Section | None:
    """Authors and licences of the sets and weights."""
    if not results.record.credits:
        return None
    data = pandas.DataFrame(results.record.credits)
    table = Table("credits", "Sources, authors and licences.", data)
    return Section("credits", "Whose artwork and weights these are", tables=[table])
