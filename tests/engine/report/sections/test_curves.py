"""The sections on training dynamics, the barrier between two models, and equal accuracy."""

from typing import Any

import numpy as np
import pytest

from engine.report.section import Section
from engine.report.sections import curves
from helpers.made_results import drawn, of_arms, row
from helpers.stores import SETS

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
    assert section
    return section


def test_claims_of_either_outcome_and_a_figure_of_every_point():
    section = section_of(FALLS, RISES)
    assert section.heading == (
        "OOD accuracy falls significantly before downstream accuracy saturates for 1 of 2 methods"
    )
    falls, rises = section.tables[0].data.to_dict("records")
    assert (falls["method"], falls["holds"]) == ("FT", True)
    assert (falls["peak"], falls["saturation"], falls["best"]) == (1, 9, 1)
    assert falls["peak_OOD_pct"] == pytest.approx(60) and falls["fall_low"] > 0
    assert falls["fall_pts"] == pytest.approx(50)
    assert (rises["method"], rises["holds"], rises["peak"]) == ("LoRA", False, 80)
    assert rises["fall_pts"] == pytest.approx(-10) and rises["fall_high"] < 0
    (figure,) = section.figures
    assert len(figure.data) == 2 * 3 * 4
    before = figure.data[figure.data["step"] == 0]
    assert set(before["at"]) == {0.5} and np.allclose(before["accuracy_pct"], 40)
    assert (figure.data["accuracy_low"] <= figure.data["accuracy_pct"]).all()
    (svg,) = drawn(section).values()
    assert ">pre<" in svg and ">80<" in svg and "other datasets" in svg


def test_a_model_that_learns_nothing_has_no_claim_and_no_table():
    section = section_of({1: (40, 40)}, {1: (40, 40)})
    assert section.tables == [] and section.heading.endswith(" for 0 of 2 methods")


def test_each_pre_training_has_a_figure():
    section = section_of(FALLS, RISES, models=["lite0", "vit_b16 x"])
    assert [figure.name for figure in section.figures] == ["dynamics-lite0", "dynamics-vit-b16-x"]
    assert len(section.tables[0].data) == 4


def test_the_barrier_of_each_column_is_its_definition():
    """By alpha, accuracy on the set fine-tuned on, and on the others."""
    accuracies = {0.0: (50, 50), 0.25: (52, 50), 0.5: (75, 30), 1.0: (90, 40)}
    arms = {("wise_ft", alpha, ""): of for alpha, of in accuracies.items()}
    section = curves.barrier(of_arms(arms, methods={"wise_ft": "WiSE-FT"}))
    data = section.tables[0].data
    assert list(data["downstream"]) == list(SETS) and set(data["alphas"]) == {4}
    # At 0.25 the line has (100 + 0.25 * 80) / 2 = 60%, at 0.5 elsewhere (100 - 0.5 * 20) / 2 = 45%.
    assert data["barrier_downstream_pts"].tolist() == pytest.approx([8.0] * 3)
    assert data["barrier_OOD_pts"].tolist() == pytest.approx([15.0] * 3)
    assert section.heading == (
        "Interpolated models fall at most 8.0 points on the downstream dataset and 15.0 points on "
        "the other datasets below the line between both endpoints"
    )
    straight = {("wise_ft", alpha, ""): (50 + 40 * alpha, 50) for alpha in accuracies}
    above = curves.barrier(of_arms(straight, methods={"wise_ft": "WiSE-FT"}))
    assert above.heading == "No interpolated model falls below the line between both endpoints"
    del arms["wise_ft", 0.0, ""]
    assert curves.barrier(of_arms(arms)) is None, "without both ends"


TITLES = {"fine_tune": "FT", "lwf": "LwF", "lora": "LoRA", "wise_ft": "WiSE-FT"}
CURVE = {
    ("wise_ft", alpha, ""): of for alpha, of in ((0.0, (40, 60)), (0.5, (60, 56)), (1.0, (80, 40)))
}
COMPARED = {
    ("fine_tune", None, ""): (80, 40), ("lwf", None, ""): (70, 60), ("lora", None, ""): (90, 70)
}  # fmt: skip


def test_methods_are_compared_with_the_curve_at_their_downstream_accuracy():
    section = curves.equal_accuracy(of_arms({**COMPARED, **CURVE}, methods=TITLES))
    table = section.tables[0].data
    assert set(table["curve"]) == {"WiSE-FT"} and list(table["method"]) == ["FT", "LwF", "LoRA"]
    lwf = row(table, method="LwF")
    assert lwf["curve_OOD_accuracy_pct"] == pytest.approx(48)  # halfway from 56 to 40
    assert lwf["difference_pts"] == pytest.approx(12) and lwf["difference_low"] > 0
    assert row(table, method="FT")["difference_pts"] == pytest.approx(0)
    assert row(table, method="LoRA")[["difference_pts", "difference_low"]].isna().all()
    assert section.heading == (
        "At equal downstream accuracy, methods are significantly more robust than WiSE-FT in 1 of "
        "2 comparisons, less in 0"
    )
    assert "The curve does not reach the accuracy of LoRA." in section.text


@pytest.mark.parametrize(
    "arms",
    [
        COMPARED, CURVE, {**COMPARED, ("wise_ft", 0.5, ""): (60, 56)},
        {("lora", None, ""): (90, 70), **CURVE},
    ],
    ids=["no curve", "no method", "one alpha", "out of reach"],
)  # fmt: skip
def test_without_a_curve_that_reaches_a_method_there_is_no_section(arms):
    assert curves.equal_accuracy(of_arms(arms, methods=TITLES)) is None
