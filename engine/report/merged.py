"""Several campaigns as one: their evaluations and records, as far as they agree."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.grid.record import FinishedCampaign, MissingColumn, Record
from engine.machine.files import digest
from engine.measures.rows import Evaluation
from engine.report.results import Results, of_record


def merged(runs: Sequence[FinishedCampaign], models_csv: Path | None = None) -> Results:
    """Results of several campaigns over the same sets, side by side; models_csv: as in
    `results.of_campaign`.

    A model of several campaigns is one model where they agree in every evaluation that they share,
    and is otherwise named after each campaign too. Of the sets fine-tuned on, those that all
    campaigns have are shown, and the others are named as missing. Raises ValueError where sets
    differ, or no set is fine-tuned on by all.
    """
    first = runs[0].record
    for run in runs[1:]:
        sets = sorted(run.record.sets), run.record.upstream
        if sets != (sorted(first.sets), first.upstream):
            raise ValueError(
                f"campaign {run.record.name} has the sets {', '.join(run.record.sets)} beside "
                f"{run.record.upstream}, and {first.name} has {', '.join(first.sets)} beside "
                f"{first.upstream}: RI is a mean over the sets, so report them apart"
            )
    labels = _labels([run.record.name for run in runs])
    downstreams = [
        name for name in first.downstreams if all(name in run.record.downstreams for run in runs)
    ]
    if not downstreams:
        raise ValueError(
            f"campaigns {', '.join(labels)} have no set in common that they fine-tune on: mRI is a "
            "mean over these sets, so report them apart"
        )
    disagreeing = _disagreeing(runs)
    rows: dict[tuple[Any, ...], Evaluation] = {}
    for label, run in zip(labels, runs, strict=True):
        for row in run.evaluations:
            if row.downstream not in ("", *downstreams):
                continue
            if row.model in disagreeing:
                row = dataclasses.replace(row, model=f"{row.model} ({label})")
            rows.setdefault((*row.key, row.seed), row)
    records = [run.record for run in runs]
    record = dataclasses.replace(
        first,
        name=" and ".join(labels),
        downstreams=downstreams,
        methods={key: title for record in records for key, title in record.methods.items()},
        settings=_settings(labels, records),
        credits=list({digest(row): row for record in records for row in record.credits}.values()),
        holdout=all(record.holdout for record in records),
        distances=first.distances if len(runs) == 1 else None,
        cka=_cka(labels, records, disagreeing),
        sweep=first.sweep if len(runs) == 1 else None,
        attempts=[
            dataclasses.replace(attempt, campaign=label)
            for label, record in zip(labels, records, strict=True)
            for attempt in record.attempts
        ],
        thumbnails={
            name: {k: v for each in records for k, v in each.thumbnails.get(name, {}).items()}
            for name in {name: None for each in records for name in each.thumbnails}
        },
        missing=list(_missing(labels, records, downstreams)),
    )
    return of_record(record, list(rows.values()), models_csv)


def _missing(
    labels: Sequence[str], records: Sequence[Record], downstreams: Collection[str]
) -> Iterator[MissingColumn]:
    """The columns that a common report lacks: those that are not finished, and those that only
    some of the campaigns have."""
    for label, record in zip(labels, records, strict=True):
        for column in record.missing:
            yield dataclasses.replace(column, campaign=label)
        for name in record.downstreams:
            if name not in downstreams:
                without = [
                    other
                    for other, each in zip(labels, records, strict=True)
                    if name not in each.downstreams
                ]
                yield MissingColumn(name, f"not a column of {', '.join(without)}", label)


def _labels(names: Sequence[str]) -> list[str]:
    """The campaigns' names, numbered where one comes several times."""
    times, seen = Counter(names), Counter[str]()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if times[name] == 1 else f"{name} {seen[name]}")
    return labels


def _disagreeing(runs: Sequence[FinishedCampaign]) -> set[str]:
    """Models whose same cell has different predictions in two of the campaigns."""
    hashes: dict[tuple[Any, ...], str] = {}
    models = set()
    for record in (run.record for run in runs):
        for row in record.evaluations:
            file = record.files[str(row.path)]
            if hashes.setdefault((*row.key, row.seed), file) != file:
                models.add(row.model)
    return models


def _cka(
    labels: Sequence[str], records: Sequence[Record], disagreeing: Collection[str]
) -> list[dict[str, Any]] | None:
    """The CKA of all campaigns, a model on a set once; None where no campaign has any."""
    rows: dict[str, dict[str, Any]] = {}
    for label, record in zip(labels, records, strict=True):
        for row in record.cka or ():
            if row["model"] in disagreeing:
                row = row | {"model": f"{row['model']} ({label})"}
            rows.setdefault(digest({k: v for k, v in row.items() if k != "blocks"}), row)
    return list(rows.values()) if any(record.cka is not None for record in records) else None


def _settings(labels: Sequence[str], records: Sequence[Record]) -> dict[str, Any]:
    """Settings that all campaigns share by their names, the rest with the campaign's."""
    settings: dict[str, Any] = {}
    for label, record in zip(labels, records, strict=True):
        for name, value in record.settings.items():
            shared = all(other.settings.get(name) == value for other in records)
            settings[name if shared else f"{name}, {label}"] = value
    return settings
