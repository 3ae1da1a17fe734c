"""The section on training dynamics: its statements, numbers and figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import stores
import vl_convert
from made_results import of_evaluations

from engine.measures.rows import PRE, Evaluation
from engine.report import charts
from engine.report.section import Section
from engine.report.sections import curves

METHODS = {"fine_tune": "FT", "lora": "LoRA"}
SHARES = {  # of right answers: on the set fine-tuned on, and elsewhere, by step
    "fine_tune": {1: (0.5, 0.6), 9: (0.9, 0.1), 80: (0.91, 0.1)},
    "lora": {1: (0.5, 0.3), 9: (0.7, 0.5), 80: (0.9, 0.6)},
}


def evaluations(folder: Path) -> list[Evaluation]:
    """Two methods: robustness falls before downstream accuracy saturates, and rises."""

    def share(method: str, downstream: str, on: str) -> float:
        if method == PRE:
            return 0.4
        name, _, step = method.rpartition("-")
        return SHARES[name][int(step)][downstream != on]

    def hits(method: str, downstream: str, on: str) -> np.ndarray:
        return np.arange(200) < 200 * share(method, downstream, on)

    arms = [f"{method}-{step}" for method, steps in SHARES.items() for step in steps]
    rows = []
    for row in stores.grid(folder, hits, arms):
        if row.method != PRE:
            name, _, step = row.method.rpartition("-")
            row = replace(row, method=name, setting=f"step={step}", headline=False)
        rows.append(row)
    return rows


def section_of(rows: list[Evaluation]) -> Section | None:
    return curves.during_training(of_evaluations(rows, methods=METHODS))


def test_statements_of_either_outcome_with_their_numbers(tmp_path: Path):
    section = section_of(evaluations(tmp_path))
    assert section is not None
    falls, rises = section.statements
    assert falls.startswith("FT of lite0: OOD accuracy is highest at step 1 (60.0%)")
    assert "reaches 95% of its rise at step 9" in falls
    assert "saturates: true for this run" in falls and "changes by −50.0 points [−" in falls
    assert rises.startswith("LoRA of lite0: OOD accuracy is highest at step 80 (60.0%)")
    assert "saturates: false for this run" in rises and "changes by +10.0 points [+" in rises
    (table,) = section.tables
    assert table.data["method"].tolist() == ["FT", "LoRA"]
    assert table.data["holds"].tolist() == [True, False]
    assert section.heading == "Robustness falls before downstream accuracy saturates in 1 of 2"


def test_figures_hold_every_point_and_can_be_drawn(tmp_path: Path):
    rows = evaluations(tmp_path)
    for of_methods in (rows, [row for row in rows if row.method in (PRE, "lora")]):
        section = section_of(of_methods)
        assert section is not None
        (figure,) = section.figures
        methods = len({row.method for row in of_methods}) - 1
        assert len(figure.data) == methods * 3 * 4
        before = figure.data[figure.data["step"] == 0]
        assert set(before["at"]) == {0.5} and (before["accuracy_pct"].round(6) == 40).all()
        assert (figure.data["accuracy_low"] <= figure.data["accuracy_pct"]).all()
        svg = vl_convert.vegalite_to_svg(charts.drawn(figure, width=400))
        text = " ".join(element.text or "" for element in ET.fromstring(svg).iter())
        assert "pre" in text.split() and "80" in text.split() and "other sets" in text


def test_a_model_that_learns_nothing_has_no_claim_and_no_table(tmp_path: Path):
    rows = [row for row in evaluations(tmp_path) if row.method == PRE or row.setting == "step=1"]
    still = [replace(row, path=rows[0].path) for row in rows]
    section = section_of(still)
    assert section is not None and section.tables == []
    assert all(text.endswith("cannot saturate.") for text in section.statements)


def test_each_pre_training_has_a_figure(tmp_path: Path):
    rows = evaluations(tmp_path)
    section = section_of([*rows, *(replace(row, model="vit_b16 x") for row in rows)])
    assert section is not None
    assert [figure.name for figure in section.figures] == ["dynamics-lite0", "dynamics-vit-b16-x"]
    assert len(section.statements) == 4
