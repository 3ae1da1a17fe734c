"""The section on training dynamics: its claims, numbers and figures."""

from typing import Any

import numpy as np
import pytest
from made_results import drawn, of_arms

from engine.report.section import Section
from engine.report.sections import curves

METHODS = {"fine_tune": "FT", "lora": "LoRA"}
# Accuracy by step: on the set fine-tuned on, and elsewhere. Robustness falls before downstream
# accuracy saturates, and rises.
FALLS, RISES = {1: (50, 60), 9: (90, 10), 80: (91, 10)}, {1: (50, 30), 9: (70, 50), 80: (90, 60)}


def section_of(*shapes: dict[int, tuple[int, int]], **options: Any) -> Section:
    arms = {
        (method, None, f"step={step}"): accuracy
        for method, steps in zip(METHODS, shapes, strict=True)
        for step, accuracy in steps.items()
    }
    section = curves.during_training(of_arms(arms, before=40, methods=METHODS, **options))
    assert section is not None
    return section


def test_claims_of_either_outcome_and_a_figure_of_every_point():
    section = section_of(FALLS, RISES)
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
    assert set(before["at"]) == {0.5} and np.allclose(before["accuracy_pct"], 40)
    assert (figure.data["accuracy_low"] <= figure.data["accuracy_pct"]).all()
    (svg,) = drawn(section).values()
    assert ">pre<" in svg and ">80<" in svg and "other sets" in svg


def test_a_model_that_learns_nothing_has_no_claim_and_no_table():
    section = section_of({1: (40, 40)}, {1: (40, 40)})
    assert section.tables == [] and section.heading.endswith("in 0 of 2 rows")


def test_each_pre_training_has_a_figure():
    section = section_of(FALLS, RISES, models=["lite0", "vit_b16 x"])
    assert [figure.name for figure in section.figures] == ["dynamics-lite0", "dynamics-vit-b16-x"]
    assert len(section.tables[0].data) == 4
