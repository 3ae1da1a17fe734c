"""What is not in the numbers: cells that lack, sampled sets, pairs without a distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas

from engine.measures.rows import PRE
from engine.report.section import Section, Table
from engine.report.tables import Results


def section(results: Results) -> Section | None:
    record = results.record
    places = [*record.sets, record.upstream]
    cells = {(row.arm, row.downstream, row.evaluated_on) for row in results.grid.accuracy}
    arms = list(dict.fromkeys(arm for arm, *_ in cells if arm.method != PRE))
    expected = [(arm, i, j) for arm in arms for i in record.sets for j in places]
    missing = [cell for cell in expected if cell not in cells]
    sampled = _sampled(results)
    seeds = len(results.grid.seeds)
    statements = [
        f"{len(expected) - len(missing):,} of {len(expected):,} cells (model, method, set "
        "fine-tuned on, set evaluated on) were trained and evaluated, each with "
        f"{seeds} training seed{'s' * (seeds > 1)}.",
        f"{len(sampled)} of {len(places)} sets were evaluated on a sample of their images."
        if sampled
        else "Every set was evaluated on all of its images that are not trained on.",
    ]
    matrix = record.matrix()
    if matrix is None:
        statements.append("Distances between the sets are not part of this report.")
    elif apart := int(np.isnan(matrix.values).sum()) // 2:
        statements.append(f"{apart} pairs of sets have no distance: they did not converge.")
    absent = [
        {"method": str(arm), "downstream": i, "evaluated_on": j}
        for arm, i, j in sorted(missing, key=str)
    ]
    tables = [
        Table(name, caption, pandas.DataFrame(rows))
        for name, caption, rows in (
            ("missing-cells", "Cells that were not evaluated.", absent),
            ("sampled-sets", "Images that were evaluated of each sampled set.", sampled),
        )
        if rows
    ]
    return Section(
        "coverage", "What was left out, and what was sampled", statements=statements, tables=tables
    )


def _sampled(results: Results) -> list[dict[str, Any]]:
    images = {row.evaluated_on: row.n for row in results.grid.accuracy if row.method == PRE}
    return [
        {"set": name, "images_evaluated": images.get(name, sample.images)}
        for name, sample in results.record.samples.items()
    ]
