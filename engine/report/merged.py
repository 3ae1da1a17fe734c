"""Combine the evaluations and records of several campaigns, as far as they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.campaigns.record import FinishedCampaign, MissingColumn, Record
from engine.measures.rows import REPLICATE, TEST, Evaluation, of_role
from engine.report.results import Results, of_record
from loaders.files.durable import short_digest


def merged(runs: Sequence[FinishedCampaign], models_csv: Path | None = None) -> Results:
    """Results of several campaigns over the same datasets; models_csv: as in `results.of_campaign`.

    A model of several campaigns counts as one model if they agree in every shared evaluation;
    otherwise its name includes the campaign. The report shows the downstream datasets that all
    campaigns have and lists the others as missing. Raises ValueError if the datasets differ, no
    downstream dataset is common to all, or a campaign is a sweep.
    """
    records = [run.record for run in runs]
    first, names = records[0], [record.name for record in records]
    labels = [
        name if names.count(name) == 1 else f"{name} {k}" for k, name in enumerate(names, start=1)
    ]
    for run, record in zip(runs, records, strict=True):
        if record.sweep is not None:
            raise ValueError(
                f"{record.name} is a sweep, and a common report would rank its configurations on "
                "the test datasets: report it alone"
            )
        if record.benchmark == first.benchmark and record.version != first.version:
            raise ValueError(
                f"campaign {record.name} has version {record.version} of {record.benchmark}, and "
                f"{first.name} version {first.version}: their numbers cannot be compared, so "
                "report them separately"
            )
        if record.limit != first.limit:
            raise ValueError(
                f"{run.place.campaign.name} has {record.limit or 'all'} images per dataset, and "
                f"{runs[0].place.campaign.name} {first.limit or 'all'}: report a smoke run alone"
            )
        if (sorted(record.sets), record.upstream) != (sorted(first.sets), first.upstream):
            raise ValueError(
                f"campaign {record.name} has the datasets {', '.join(record.sets)} and upstream "
                f"{record.upstream}; {first.name} has {', '.join(first.sets)} and upstream "
                f"{first.upstream}. RI averages over the datasets, so report them separately, or "
                "compare them with rib compare"
            )
    shared = set(first.downstreams).intersection(*(record.downstreams for record in records))
    if not shared:
        raise ValueError(
            f"campaigns {', '.join(labels)} have no downstream dataset in common: mRI averages "
            "over these, so report them separately"
        )
    disagreeing = _disagreeing(records)
    replicates = [of_role(record.evaluations, REPLICATE) for record in records]
    # The rows of a campaign without replicates would appear not to vary over seeds.
    all_have_replicates = all(any(of.downstream in shared for of in rows) for rows in replicates)
    kept: dict[tuple[Any, ...], Evaluation] = {}
    attempts, missing, diverged, rows = [], [], [], []
    of_extras: dict[str, list[dict[str, Any]]] = {}
    thumbnails: dict[str, dict[str, str]] = {}
    settings: dict[str, Any] = {}
    samples_seen: dict[str, int] = {}
    for label, run in zip(labels, runs, strict=True):
        record, models = run.record, {name: f"{name} ({label})" for name in disagreeing}
        for row in _renamed(run.evaluations, models):
            is_comparable = row.role != REPLICATE or all_have_replicates
            if is_comparable and row.downstream in ("", *shared):
                kept.setdefault((*row.key, row.seed, row.role), row)
        diverged += [row for row in _renamed(record.diverged, models) if row.downstream in shared]
        samples_seen |= {models.get(name, name): n for name, n in record.samples_seen.items()}
        for name, of_extra in record.extras.items():
            renamed = (row | {"model": models.get(row["model"], row["model"])} for row in of_extra)
            of_extras.setdefault(name, []).extend(renamed)
        attempts += [replace(attempt, campaign=label) for attempt in record.attempts]
        missing += [replace(column, campaign=label) for column in record.missing]
        missing += [
            MissingColumn(name, "not a column of all campaigns", label)
            for name in record.downstreams
            if name not in shared
        ]
        for name, images in record.thumbnails.items():
            thumbnails[name] = thumbnails.get(name, {}) | images
        rows += [row for row in record.rows if row not in rows]
        for name, value in record.settings.items():  # shared settings keep their names
            is_shared = all(other.settings.get(name) == value for other in records)
            settings[name if is_shared else f"{name}, {label}"] = value
    record = replace(
        first,
        name=" and ".join(labels),
        downstreams=[name for name in first.downstreams if name in shared],
        methods={key: title for record in records for key, title in record.methods.items()},
        settings=settings,
        rows=rows,
        diverged=diverged,
        credits=_once(row for record in records for row in record.credits),
        holdout=all(record.holdout for record in records),
        distances=None,
        extras={name: _once(of_extra) for name, of_extra in of_extras.items()},
        attempts=attempts,
        thumbnails=thumbnails,
        missing=missing,
        samples_seen=samples_seen,
        made_by=[maker for record in records for maker in record.made_by],
        evaluate_on=[
            name for name in first.evaluate_on if all(name in of.evaluate_on for of in records)
        ],
        makers={name: sets for record in records for name, sets in record.makers.items()},
    )
    return of_record(record, list(kept.values()), models_csv)


def _renamed(rows: Sequence[Any], models: Mapping[str, str]) -> list[Any]:
    """Rows that name a model, with its new name."""
    return [replace(row, model=models.get(row.model, row.model)) for row in rows]


def _disagreeing(records: Sequence[Record]) -> set[str]:
    """Models with a cell whose predictions differ between two campaigns."""
    hashes: dict[tuple[Any, ...], str] = {}
    return {
        row.model
        for record in records
        for row in of_role(record.evaluations, TEST)
        for file in [record.files[str(row.path)]]
        if hashes.setdefault((*row.key, row.seed), file) != file
    }


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({short_digest(row): row for row in rows}.values())
