"""The section on training dynamics: its claims, numbers and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stores
from made_results import drawn, of_evaluations

from engine.measures.rows import PRE, Evaluation
from engine.report.section import Section
from engine.report.sections import curves

METHODS = {"fine_tune": "FT", "lora": "LoRA"}
SHARES = {  # of right answers: on the set fine-tuned on, and elsewhere, by step
    "fine_tune": {1: (0.5, 0.6), 9: (0.9, 0.1), 80: (0.91, 0.1)},
    "lora": {1: (0.5, 0.3), 9: (0.7, 0.5), 80: (0.9, 0.6)},
}


def evaluations(folder: Path) -> list[Evaluation]:
    """Two methods: robustness falls before downstream accuracy saturates, and rises."""

    def of_step(step: int) -> stores.Hits:
        def hits(method: str, downstream: str, on: str) -> np.ndarray:
            share = 0.4 if method == PRE else SHARES[method][step][downstream != on]
            return np.arange(200) < 200 * share

        return hits

    hits = {f"step={step}": of_step(step) for step in (1, 9, 80)}
    rows = stores.in_settings(folder, hits, [*METHODS])
    return [replace(row, headline=row.method == PRE) for row in rows]


def section_of(rows: list[Evaluation]) -> Section:
    section = curves.during_training(of_evaluations(rows, methods=METHODS))
    assert section is not None
    return section


def test_claims_of_either_outcome_and_a_figure_of_every_point(tmp_path: Path):
    section = section_of(evaluations(tmp_path))
    assert section.heading == "Robustness falls before downstream accuracy saturates in 1 of 2 rows"
    falls, rises = section.tables[0].data.to_dict("records")
    assert (falls["method"], falls["holds"]) == ("FT", True)
    assert (falls["peak"], falls["saturation"], falls["best"]) == (1, 9, 1)
    assert falls["peak_ood_pct"] == pytest.approx(60) and falls["fall_low"] > 0
    assert falls["fall_pts"] == pytest.approx(50)
    assert (rises["method"], rises["holds"], rises["peak"]) == ("LoRA", False, 80)
    assert rises["fall_pts"] == pytest.approx(-10) and rises["fall_high"] < 0
    (figure,) = section.figures
    assert len(figure.data) == 2 * 3 * 4
    before = figure.data[figure.data["step"] == 0]
    assert set(before["at"]) == {0.5} and (before["accuracy_pct"].round(6) == 40).all()
    assert (figure.data["accuracy_low"] <= figure.data["accuracy_pct"]).all()
    (svg,) = drawn(section).values()
    assert ">pre<" in svg and ">80<" in svg and "other sets" in svg


def test_a_model_that_learns_nothing_has_no_claim_and_no_table(tmp_path: Path):
    rows = [row for row in evaluations(tmp_path) if row.method == PRE or row.setting == "step=1"]
    section = section_of([replace(row, path=rows[0].path) for row in rows])
    assert section.tables == [] and section.heading.endswith("in 0 of 2 rows")


def test_each_pre_training_has_a_figure(tmp_path: Path):
    rows = evaluations(tmp_path)
    section = section_of([*rows, *(replace(row, model="vit_b16 x") for row in rows)])
    assert [figure.name for figure in section.figures] == ["dynamics-lite0", "dynamics-vit-b16-x"]
    assert len(section.tables[0].data) == 4
