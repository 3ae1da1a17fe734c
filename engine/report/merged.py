"""Several campaigns as one: their evaluations and records, as far as they agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    records = [run.record for run in runs]
    first, names = records[0], [record.name for record in records]
    labels = [
        name if names.count(name) == 1 else f"{name} {names[:k].count(name) + 1}"
        for k, name in enumerate(names)
    ]
    for record in records:
        if (sorted(record.sets), record.upstream) != (sorted(first.sets), first.upstream):
            raise ValueError(
                f"campaign {record.name} has the sets {', '.join(record.sets)} beside "
                f"{record.upstream}, and {first.name} has {', '.join(first.sets)} beside "
                f"{first.upstream}: RI is a mean over the sets, so report them apart"
            )
    downstreams = [
        name for name in first.downstreams if all(name in record.downstreams for record in records)
    ]
    if not downstreams:
        raise ValueError(
            f"campaigns {', '.join(labels)} have no set in common that they fine-tune on: mRI is a "
            "mean over these sets, so report them apart"
        )
    disagreeing = _disagreeing(records)
    rows: dict[tuple[Any, ...], Evaluation] = {}
    cka: dict[str, dict[str, Any]] = {}  # a model on a set once
    missing: list[MissingColumn] = []
    for label, run in zip(labels, runs, strict=True):
        models = {row.model: f"{row.model} ({label})" for row in run.evaluations}
        models = {name: label for name, label in models.items() if name in disagreeing}
        for row in run.evaluations:
            if row.downstream in ("", *downstreams):
                row = dataclasses.replace(row, model=models.get(row.model, row.model))
                rows.setdefault((*row.key, row.seed), row)
        for row in run.record.cka or ():
            row = row | {"model": models.get(row["model"], row["model"])}
            cka.setdefault(digest({k: v for k, v in row.items() if k != "blocks"}), row)
        missing += [dataclasses.replace(of, campaign=label) for of in run.record.missing]
        for name in run.record.downstreams:
            lacking = [
                other
                for other, record in zip(labels, records, strict=True)
                if name not in record.downstreams
            ]
            if lacking:
                reason = f"not a column of {', '.join(lacking)}"
                missing.append(MissingColumn(name, reason, label))
    thumbnails: dict[str, dict[str, str]] = {}
    for record in records:
        for name, images in record.thumbnails.items():
            thumbnails[name] = thumbnails.get(name, {}) | images
    is_one = len(runs) == 1
    record = dataclasses.replace(
        first,
        name=" and ".join(labels),
        downstreams=downstreams,
        methods={key: title for record in records for key, title in record.methods.items()},
        settings=_settings(labels, records),
        credits=list({digest(row): row for record in records for row in record.credits}.values()),
        holdout=all(record.holdout for record in records),
        distances=first.distances if is_one else None,
        cka=list(cka.values()) if any(record.cka is not None for record in records) else None,
        sweep=first.sweep if is_one else None,
        attempts=[
            dataclasses.replace(attempt, campaign=label)
            for label, record in zip(labels, records, strict=True)
            for attempt in record.attempts
        ],
        thumbnails=thumbnails,
        missing=missing,
    )
    return of_record(record, list(rows.values()), models_csv)


def _disagreeing(records: Sequence[Record]) -> set[str]:
    """Models whose same cell has different predictions in two of the campaigns."""
    hashes: dict[tuple[Any, ...], str] = {}
    return {
        row.model
        for record in records
        for row in record.evaluations
        for file in [record.files[str(row.path)]]
        if hashes.setdefault((*row.key, row.seed), file) != file
    }


def _settings(labels: Sequence[str], records: Sequence[Record]) -> dict[str, Any]:
    """Settings that all campaigns share by their names, the rest with the campaign's."""
    settings: dict[str, Any] = {}
    for label, record in zip(labels, records, strict=True):
        for name, value in record.settings.items():
            is_shared = all(other.settings.get(name) == value for other in records)
            settings[name if is_shared else f"{name}, {label}"] = value
    return settings
