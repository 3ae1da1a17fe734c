"""The section on learning rates: a curve of them all, and the one that held-out images choose."""

from typing import Any

import pytest

from engine.report import sections
from engine.report.results import Results
from engine.report.sections import rates
from helpers.made_results import drawn, of_arms

# By optimizer and rate, accuracies of FT: held out of the set fine-tuned on, and elsewhere.
FT = {
    ("adamw", "0.0001"): (70, 60), ("adamw", "0.001"): (90, 45),
    ("sgd", "0.0001"): (55, 50), ("sgd", "0.001"): (80, 65),
}  # fmt: skip
LWF = {key: (70, 55) for key in FT}


def varied(**values: Any) -> Results:
    arms = {
        (method, None, f"optimizer.lr={lr},optimizer.name={name}"): of
        for method, rows in (("fine_tune", FT), ("lwf", LWF))
        for (name, lr), of in rows.items()
    }
    return of_arms(arms, **{"holdout": True, **values})


def test_the_curve_has_every_rate_and_marks_the_held_out_choice():
    section = rates.section(varied())
    assert section.heading == (
        "Fine-tuning's mRI ranges from −5.0 to +15.0 points over 4 settings, −5.0 with the setting "
        "chosen on held-out images (lr 0.001, adamw)"
    )
    table = section.tables[0].data
    marked = table[table["chosen"] == "held out"]
    assert list(marked["method"]) == ["FT, adamw", "LwF, adamw"]  # of equal ones the first
    assert marked["rate"].iloc[0] == 0.001 and marked["mRI_pts"].iloc[0] == pytest.approx(-5)
    assert marked["on_downstream_set_pct"].iloc[0] == table["on_downstream_set_pct"].max()
    assert "Highest mRI in 4 settings: FT in 2 and LwF in 2." in section.text
    assert "select on the test datasets" in section.text
    (svg,) = drawn(section).values()
    assert ">0.0001<" in svg and ">0.001<" in svg
    rings = len(marked)
    unmarked = drawn(rates.section(varied(holdout=False)))["rates-lite0"]
    assert svg.count("<path") == unmarked.count("<path") + rings


def test_without_held_out_images_no_rate_is_marked():
    section = rates.section(varied(holdout=False))
    assert not section.tables[0].data["chosen"].any()
    assert section.heading == "Fine-tuning's mRI ranges from −5.0 to +15.0 points over 4 settings"
    assert section.text.startswith("No images are held out, so no rate is marked.")


def test_it_is_there_where_a_rate_varies_and_only_there():
    assert rates.section in sections.SECTIONS and rates.section in sections.OF_SWEEP
    one = {("fine_tune", None, "optimizer.lr=0.1"): (60, 60)}
    assert rates.section(of_arms(one)) is None
    assert rates.section(of_arms({("fine_tune", None, "train.epochs=1"): (60, 60)})) is None
