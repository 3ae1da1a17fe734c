"""About the numbers: what they mean, what was run, what is missing, and whose images these are."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import numpy as np
import pandas

from engine.grid.attempts import Attempt
from engine.measures.rows import PRE
from engine.report.headline import averaged_over, measured_on
from engine.report.results import Results, published, slides
from engine.report.section import Picture, Section, Table
from engine.report.text import rounded

ROWS = "Rows"  # of a record's settings: the settings of each method, by its key
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
    png = base64.b64decode(results.record.contact_sheet)
    if not png:
        return None
    alt = f"Samples of {results.record.upstream} and {', '.join(results.record.sets)}"
    return Section(
        "contact-sheet",
        "What the sets look like",
        "Images of every set, of the size that the models see.",
        pictures={"": [Picture(f"Contact sheet. {alt}.", png)]},
    )


def how_to_read(results: Results) -> Section | None:
    """What the numbers mean, and what they cannot say."""
    models, seeds = results.models, len(results.grid.seeds)
    means = {
        model: fmean(results.before(model)[name] for name in results.grid.sets) for model in models
    }
    before = ", ".join(
        f"{rounded(mean)}%{f' ({model})' if len(models) > 1 else ''}"
        for model, mean in means.items()
    )
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
    if any(published(model) for model in models):
        statements.append(f"Published numbers: {slides()['source']}.")
    return Section("how-to-read", "How to read this", statements=statements)


def methods(results: Results) -> Section | None:
    """The canonical methods that were run, a sentence each."""
    rows = results.shown[results.shown["variant"] != "paper"]
    known = rows[rows["key"].isin(GLOSSARY)].drop_duplicates("method")
    if known.empty:
        return None
    data = pandas.DataFrame({"method": known["method"], "what_it_does": known["key"].map(GLOSSARY)})
    return Section(
        "methods", "The methods", tables=[Table("methods", "The methods of this report.", data)]
    )


def coverage(results: Results) -> Section | None:
    """What is not in the numbers: missing columns and cells, failed jobs, distances."""
    record, cells = results.record, results.grid.cells
    places = [*record.sets, record.upstream]
    keys = [cells[name] for name in ("arm", "downstream", "evaluated_on")]
    known = set(zip(*keys, strict=True))
    arms = dict.fromkeys(cells.loc[cells["method"] != PRE, "arm"])
    expected = [(arm, i, j) for arm in arms for i in record.downstreams for j in places]
    missing = [cell for cell in expected if cell not in known]
    seeds = len(results.grid.seeds)
    statements = [
        f"{len(expected) - len(missing):,} of {len(expected):,} cells (model, method, set "
        "fine-tuned on, set evaluated on) were trained and evaluated, each with "
        f"{seeds} training seed{'s' * (seeds > 1)}.",
        "Every set was evaluated on all of its images"
        + (
            "; a model's own set on those that are held out of its training."
            if record.holdout
            else "; nothing is held out, so a model's own set on those that it was trained on."
        ),
    ]
    matrix = record.matrix()
    if matrix is None:
        statements.append("Distances between the sets are not part of this report.")
    elif apart := int(np.isnan(matrix.values).sum()) // 2:
        statements.append(f"{apart} pairs of sets have no distance: they did not converge.")
    if record.missing:
        statements.insert(
            0,
            f"{len(record.missing)} columns of the grid (a set fine-tuned on, in a setting) are "
            "missing; mRI is a mean over the others.",
        )
    failed = [attempt for attempt in record.attempts if attempt.failure]
    if failed:
        statements.append(
            f"{len(failed)} of {len(record.attempts)} attempts at jobs did not finish them; a "
            "later attempt goes on from what the store holds."
        )
    absent = [
        {"method": str(results.grid.arms[arm]), "downstream": i, "evaluated_on": j}
        for arm, i, j in missing
    ]
    tables = [
        Table(name, caption, pandas.DataFrame(rows))
        for name, caption, rows in (
            (
                "missing-columns",
                "Columns that are missing, and why as far as it is known.",
                _named([dataclasses.asdict(column) for column in record.missing]),
            ),
            ("missing-cells", "Cells that were not evaluated.", absent),
            (
                "failed-attempts",
                "Attempts at jobs that did not finish them, and why.",
                _named([_failed(attempt) for attempt in failed]),
            ),
        )
        if rows
    ]
    gone = [f"{len(record.missing)} columns"] * bool(record.missing)
    gone += [f"{len(missing)} cells"] * bool(missing)
    heading = f"{' and '.join(gone)} are missing" if gone else "Nothing was left out"
    return Section("coverage", heading, statements=statements, tables=tables)


def _failed(attempt: Attempt) -> dict[str, Any]:
    return {
        "campaign": attempt.campaign,
        "job": attempt.job,
        "started": f"{datetime.fromtimestamp(attempt.started, UTC):%Y-%m-%d %H:%M} UTC",
        "hours": round(attempt.hours, 3),
        "why": attempt.failure,
    }


def _named(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the campaign's name where there is one."""
    return [{k: v for k, v in row.items() if k != "campaign" or v} for row in rows]


def what_was_run(results: Results) -> Section | None:
    """Settings, versions, hardware and hours, and every row's hyper-parameters."""
    settings = dict(results.record.settings)
    rows = {name: settings.pop(name) for name in [*settings] if name.split(",")[0] == ROWS}
    tables = []
    if settings:
        values = list(map(str, settings.values()))
        data = pandas.DataFrame({"setting": [*settings], "value": values})
        tables.append(Table("settings", "What it takes to get these numbers again.", data))
    attempts = [attempt for attempt in results.record.attempts if attempt.ended is not None]
    if attempts:
        caption = "Hours of the jobs, by stage and device; a job on several GPUs counts once."
        tables.append(Table("hours", caption, _hours(attempts)))
    listed = [
        {"method": results.record.methods.get(key, key)}
        | {name: _plain(value) for name, value in values.items()}
        for by_method in rows.values()
        for key, values in by_method.items()
    ]
    if listed:
        caption = (
            "Every method's settings as its recipe resolves them. A method that takes no steps, "
            "such as a mix of finished cells or a probe that is fitted to its optimum, does not "
            "use those of optimizer and training."
        )
        tables.append(Table("hyper-parameters", caption, pandas.DataFrame(listed)))
    statements = [
        _span([attempt for attempt in attempts if attempt.campaign == name])
        for name in dict.fromkeys(attempt.campaign for attempt in attempts)
    ]
    return Section("settings", "What was run", "", statements, tables=tables) if tables else None


def _span(attempts: Sequence[Attempt]) -> str:
    """From the first job of a campaign to the last."""
    start = min(attempt.started for attempt in attempts)
    end = max(attempt.ended or start for attempt in attempts)
    name = f"{attempts[0].campaign}: " if attempts[0].campaign else ""
    return (
        f"{name}{(end - start) / 3600:.2f} hours from the start of the first job "
        f"({datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC) to the end of the last, "
        f"{sum(attempt.hours for attempt in attempts):.2f} job-hours in them. Neither the report's "
        "own job nor an attempt that was killed is counted."
    )


def _hours(attempts: Sequence[Attempt]) -> pandas.DataFrame:
    """A row a campaign, stage, device and number of GPUs or processes at work."""
    names = ["campaign", "stage", "device", "processes", "job"]
    data = pandas.DataFrame([{name: getattr(each, name) for name in names} for each in attempts])
    data["job_hours"] = [attempt.hours for attempt in attempts]
    groups = data.groupby(names[:-1], sort=False)
    table = groups.agg(
        jobs=("job", "nunique"), attempts=("job", "size"), job_hours=("job_hours", "sum")
    ).reset_index()
    return table if table["campaign"].any() else table.drop(columns="campaign")


def _plain(value: Any) -> Any:
    """A value that fits a table's cell."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def credits(results: Results) -> Section | None:
    """Authors and licences of the sets and weights."""
    if not results.record.credits:
        return None
    data = pandas.DataFrame(results.record.credits)
    table = Table("credits", "Sources, authors and licences.", data)
    return Section("credits", "Whose artwork and weights these are", tables=[table])
