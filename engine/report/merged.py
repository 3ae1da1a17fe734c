"""Several campaigns as one: their evaluations and records, as far as they agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.grid.record import FinishedCampaign, MissingColumn, Record, Row
from engine.machine.files import short_digest
from engine.measures.rows import Evaluation
from engine.report.results import Results, of_record


def merged(runs: Sequence[FinishedCampaign], models_csv: Path | None = None) -> Results:
    """Results of several campaigns over the same sets, side by side; models_csv: as in
    `results.of_campaign`.

    A model of several campaigns is one model where they agree in every evaluation that they share,
    and is otherwise named after each campaign too. Of the sets fine-tuned on, those that all
    campaigns have are shown, and the others are named as missing. Raises ValueError where sets
    differ, no set is fine-tuned on by all, or a campaign is a sweep.
    """
    records = [run.record for run in runs]
    first, names = records[0], [record.name for record in records]
    labels = [
        name if names.count(name) == 1 else f"{name} {k}" for k, name in enumerate(names, start=1)
    ]
    for record in records:
        if record.sweep is not None:
            raise ValueError(
                f"{record.name} is a sweep, and a common report would rank its variants by the "
                "test sets: report it alone"
            )
        if record.limit != first.limit:
            raise ValueError(
                f"{record.name} has {record.limit or 'all'} images of each set, and {first.name} "
                f"{first.limit or 'all'}: report a smoke run alone"
            )
        if (sorted(record.sets), record.upstream) != (sorted(first.sets), first.upstream):
            raise ValueError(
                f"campaign {record.name} has the sets {', '.join(record.sets)} beside "
                f"{record.upstream}, and {first.name} has {', '.join(first.sets)} beside "
                f"{first.upstream}: RI is a mean over the sets, so report them apart"
            )
    shared = set(first.downstreams).intersection(*(record.downstreams for record in records))
    if not shared:
        raise ValueError(
            f"campaigns {', '.join(labels)} have no set in common that they fine-tune on: mRI is a "
            "mean over these sets, so report them apart"
        )
    disagreeing = _disagreeing(records)
    rows: dict[tuple[Any, ...], Evaluation] = {}
    seen: dict[tuple[Any, ...], Evaluation] = {}
    cka, attempts, missing = [], [], []
    # Without a probe of its own, a campaign's rows would count as the same with every seed.
    has_probe = all(any(of.downstream in shared for of in record.probe) for record in records)
    probe: dict[tuple[Any, ...], Evaluation] = {}
    thumbnails: dict[str, dict[str, str]] = {}
    settings: dict[str, Any] = {}
    settings_of_rows: list[Row] = []
    for label, run in zip(labels, runs, strict=True):
        record, models = run.record, {name: f"{name} ({label})" for name in disagreeing}
        of_probe = run.probe if has_probe else []
        kinds = (rows, run.evaluations), (seen, run.seen), (probe, of_probe)
        for kept, of_run in kinds:
            for row in of_run:
                if row.downstream in ("", *shared):
                    row = dataclasses.replace(row, model=models.get(row.model, row.model))
                    kept.setdefault((*row.key, row.seed), row)
        cka += [row | {"model": models.get(row["model"], row["model"])} for row in record.cka or ()]
        attempts += [dataclasses.replace(attempt, campaign=label) for attempt in record.attempts]
        missing += [dataclasses.replace(column, campaign=label) for column in record.missing]
        missing += [
            MissingColumn(name, "not a column of all campaigns", label)
            for name in record.downstreams
            if name not in shared
        ]
        for name, images in record.thumbnails.items():
            thumbnails[name] = thumbnails.get(name, {}) | images
        settings_of_rows += [row for row in record.rows if row not in settings_of_rows]
        for name, value in record.settings.items():  # those that all share by their names
            is_shared = all(other.settings.get(name) == value for other in records)
            settings[name if is_shared else f"{name}, {label}"] = value
    record = dataclasses.replace(
        first,
        name=" and ".join(labels),
        downstreams=[name for name in first.downstreams if name in shared],
        methods={key: title for record in records for key, title in record.methods.items()},
        settings=settings,
        rows=settings_of_rows,
        credits=_once(row for record in records for row in record.credits),
        holdout=all(record.holdout for record in records),
        distances=None,
        cka=_once(cka),
        attempts=attempts,
        thumbnails=thumbnails,
        missing=missing,
        families={name: sets for record in records for name, sets in record.families.items()},
    )
    more = list(seen.values()), list(probe.values())
    return of_record(record, list(rows.values()), models_csv, *more)


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


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({short_digest(row): row for row in rows}.values())
