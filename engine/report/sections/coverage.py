"""What is not in the numbers: missing columns and cells, failed jobs, sampled sets, distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas

from engine.grid.attempts import Attempt
from engine.measures.rows import PRE
from engine.report.section import Section, Table
from engine.report.tables import Results


def section(results: Results) -> Section | None:
    record = results.record
    places = [*record.sets, record.upstream]
    cells = {(row.arm, row.downstream, row.evaluated_on) for row in results.grid.accuracy}
    arms = list(dict.fromkeys(arm for arm, *_ in cells if arm.method != PRE))
    expected = [(arm, i, j) for arm in arms for i in record.downstreams for j in places]
    missing = [cell for cell in expected if cell not in cells]
    sampled = _sampled(results)
    seeds = len(results.grid.seeds)
    statements = [
        f"{len(expected) - len(missing):,} of {len(expected):,} cells (model, method, set "
        "fine-tuned on, set evaluated on) were trained and evaluated, each with "
        f"{seeds} training seed{'s' * (seeds > 1)}.",
        f"{len(record.samples)} of {len(places)} sets were evaluated on a sample of their images."
        if sampled
        else "Every set was evaluated on all of its images"
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
        {"method": str(arm), "downstream": i, "evaluated_on": j}
        for arm, i, j in sorted(missing, key=str)
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
            ("sampled-sets", "Images that were evaluated of each sampled set.", sampled),
            (
                "half-widths",
                "How far RI (mRI, where no set is named) of a sample may be from that of all "
                "images, in points to either side, with 95%.",
                _half_widths(results),
            ),
        )
        if rows
    ]
    return Section(
        "coverage", "What was left out, and what was sampled", statements=statements, tables=tables
    )


def _failed(attempt: Attempt) -> dict[str, Any]:
    return {
        "campaign": attempt.campaign,
        "job": attempt.job,
        "started": f"{datetime.fromtimestamp(attempt.started, UTC):%Y-%m-%d %H:%M} UTC",
        "hours": round(attempt.hours, 3),
        "why": attempt.failure,
    }


def _sampled(results: Results) -> list[dict[str, Any]]:
    return _named(
        [
            {"campaign": label, "set": name, "images_evaluated": each.images, "of": len(each.index)}
            for label, sampled in results.samples.items()
            for name, each in sampled.samples.items()
        ]
    )


def _half_widths(results: Results) -> list[dict[str, Any]]:
    methods = results.record.methods
    return _named(
        [
            {"campaign": label, "model": row.model, "method": methods.get(row.method, row.method)}
            | {"variant": row.variant, "alpha": row.alpha, "setting": row.setting}
            | {"downstream": row.downstream, "half_width": row.half_width}
            for label, sampled in results.samples.items()
            for row in sampled.intervals
        ]
    )


def _named(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the campaign's name where there is one."""
    return [{k: v for k, v in row.items() if k != "campaign" or v} for row in rows]
