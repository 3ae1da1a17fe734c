"""The section on robustness at equal downstream accuracy."""

import pytest

from engine.report.sections import curves
from helpers.made_results import of_arms, row

TITLES = {"fine_tune": "FT", "lwf": "LwF", "lora": "LoRA", "wise_ft": "WiSE-FT"}
CURVE = {
    ("wise_ft", alpha, ""): of for alpha, of in ((0.0, (40, 60)), (0.5, (60, 56)), (1.0, (80, 40)))
}
METHODS = {
    ("fine_tune", None, ""): (80, 40), ("lwf", None, ""): (70, 60), ("lora", None, ""): (90, 70)
}  # fmt: skip


def test_methods_are_compared_with_the_curve_at_their_downstream_accuracy():
    section = curves.equal_accuracy(of_arms({**METHODS, **CURVE}, methods=TITLES))
    table = section.tables[0].data
    assert set(table["curve"]) == {"WiSE-FT"} and list(table["method"]) == ["FT", "LwF", "LoRA"]
    lwf = row(table, method="LwF")
    assert lwf["curve_on_other_datasets_pct"] == pytest.approx(48)  # halfway from 56 to 40
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
        METHODS, CURVE, {**METHODS, ("wise_ft", 0.5, ""): (60, 56)},
        {("lora", None, ""): (90, 70), **CURVE},
    ],
    ids=["no curve", "no method", "one alpha", "out of reach"],
)  # fmt: skip
def test_without_a_curve_that_reaches_a_method_there_is_no_section(arms):
    assert curves.equal_accuracy(of_arms(arms, methods=TITLES)) is None
