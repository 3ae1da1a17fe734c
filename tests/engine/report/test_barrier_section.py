"""The barrier between two models, by hand, and the section that shows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import made_results
import numpy as np
import pytest
import reports
import stores

from engine.measures.rows import PRE
from engine.report.results import of_campaign
from engine.report.sections import curves

ALPHAS = (0.0, 0.25, 0.5, 1.0)
# Images right of 200, by alpha: on the set fine-tuned on, and on the others.
RIGHT = {0.0: (100, 100), 0.25: (104, 100), 0.5: (150, 60), 1.0: (180, 80)}


def test_the_section_has_the_barriers_of_each_column(tmp_path: Path) -> None:
    def of_alpha(alpha: float) -> stores.Hits:
        def hits(method: str, downstream: str, on: str) -> np.ndarray:
            return np.arange(200) < RIGHT[0.0 if method == PRE else alpha][downstream != on]

        return hits

    hits = {str(alpha): of_alpha(alpha) for alpha in ALPHAS}
    rows = [
        dataclasses.replace(
            row, setting="", alpha=float(row.setting), headline=row.setting == "0.5"
        )
        if row.setting
        else row
        for row in stores.in_settings(tmp_path, hits, ("wise_ft",))
    ]
    section = curves.barrier(made_results.of_evaluations(rows, methods={"wise_ft": "WiSE-FT"}))
    assert section is not None
    data = section.tables[0].data
    assert list(data["downstream"]) == list(stores.SETS) and set(data["alphas"]) == {4}
    assert set(data["method"]) == {"WiSE-FT"}
    # At 0.25 the line has (100 + 0.25 * 80) / 2 = 60%, at 0.5 elsewhere (100 - 0.5 * 20) / 2 = 45%.
    assert data["barrier_on_downstream_set_pct"].tolist() == pytest.approx([8.0] * 3)
    assert data["barrier_on_other_sets_pct"].tolist() == pytest.approx([15.0] * 3)
    assert section.heading == (
        "Mixed weights fall below the line between both ends by at most 8.0 points on the set "
        "fine-tuned on and 15.0 points on the other sets"
    )


def test_a_campaign_without_both_ends_has_no_such_section(tmp_path: Path) -> None:
    assert curves.barrier(made_results.results(tmp_path)) is None
    arms = (("fine_tune", None), ("wise_ft", 0.5), ("wise_ft", 1.0))
    finished = reports.finished(tmp_path / "runs", arms=arms)
    assert curves.barrier(of_campaign(finished)) is None
